"""The ATen graph of a module, as `torch.export` records it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from c2m3_fl.symmetry.axes import SpecError
from c2m3_fl.symmetry.failures import cannot_export, cannot_run
from c2m3_fl.symmetry.outputs import tensors_of

_PREFIX = "network."


class _Adapter(nn.Module):
    """A network that takes the tensors among its example inputs and gives those among its outputs, each as a flat list.

    What else is among the inputs stays as in the example. No class of inputs or outputs has to be known to torch.
    """

    def __init__(self, network: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        leaves, self.structure = tree_flatten((tuple(inputs), dict(kwargs)))
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.examples = tuple(leaves[place] for place in self.places)
        self.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        leaves = list(self.others)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self.structure)
        return tensors_of(self.network(*args, **kwargs))


def plain_target(target: str | None) -> str:
    """The network's own name for a tensor that an exported program names."""
    return (target or "").removeprefix(_PREFIX)


def export(module: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], *, training: bool) -> ExportedProgram:
    """Record the operators that a module applies to example inputs.

    The module is copied first; neither its mode nor the global random state changes. Where it does not run in the types
    that it and the examples have, such as half precision on a CPU, it is recorded in single precision.

    Raises
    ------
    SpecError
        If the module cannot be copied, does not run on the examples, or cannot be exported, for example because its
        control flow depends on data.
    """
    failure: SpecError | None = None
    for dtype in _types(module, (inputs, kwargs)):
        own = copied(module).train(training)
        examples: tuple[Any, Any] = (tuple(inputs), dict(kwargs))
        if dtype is not None:
            examples = tree_map(lambda leaf: cast(leaf, torch.float32), examples)
            convert(own, dtype)
        try:
            return _export(own, *examples)
        except SpecError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _types(module: nn.Module, examples: Any) -> list[torch.dtype | None]:
    """Types to try: those that module and examples have, and single precision where they have any other."""
    leaves = [*module.parameters(), *module.buffers(), *tree_leaves(examples)]
    floats = {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    return [None] if floats <= {torch.float32} else [None, torch.float32]


def _export(own: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> ExportedProgram:
    adapter = _Adapter(own, inputs, kwargs)
    with undisturbed():
        try:
            with torch.no_grad():
                outputs = adapter(*adapter.examples)
        except Exception as error:
            raise cannot_run(own, (inputs, kwargs), error) from error
        if not outputs:
            raise SpecError(
                f"the forward pass of {type(own).__name__} returns no tensor; nothing can be traced from it"
            )
        failure: SpecError | None = None
        # The strict way, which reads Python's bytecode, knows a few things more, such as assertions about values.
        for strict in (False, True):
            try:
                with _quiet():
                    return torch.export.export(adapter, adapter.examples, strict=strict)
            except Exception as error:
                failure = failure or cannot_export(own, error)
        assert failure is not None
        raise failure


def copied(module: nn.Module) -> nn.Module:
    """A deep copy.

    Raises
    ------
    SpecError
        If the module does not allow it.
    """
    # Weights that another tensor is computed into, as by the older weight_norm, refuse to be copied with their history.
    computed = {
        id(value): value.detach().clone()
        for child in module.modules()
        for value in vars(child).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(module, computed)
    except Exception as error:
        raise SpecError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}); tracing works on a copy so that "
            "yours stays as it is"
        ) from error


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Give all floating tensors of a module one type, in place; complex ones stay complex, in the precision of it."""
    module._apply(lambda tensor: cast(tensor, dtype))  # type: ignore[no-untyped-call]


def cast(leaf: Any, dtype: torch.dtype) -> Any:
    """A tensor in another precision: real stays real, complex complex, and all else as it is."""
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.to(dtype)
    if isinstance(leaf, Tensor) and leaf.is_complex():
        return leaf.to(dtype.to_complex())
    return leaf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from writing the graph of a failed attempt to the error stream."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the random state; run compiled parts as written, and attention by operators that have rules."""
    fast = torch.backends.mha.get_fastpath_enabled()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with (
        torch.random.fork_rng(devices=devices),
        torch.compiler.set_stance("force_eager"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
