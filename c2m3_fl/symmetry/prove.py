"""Proof by random permutation: a group that changes the network's outputs is pinned.

The permutations that leave a function as it is form a subgroup of all. A proper subgroup holds at most half of them, so
each uniformly random draw of all groups at once exposes a wrong spec with probability of at least 1/2; for a wrong group
of more than a few elements it is nearly 1. Eight draws are made on two inputs, but two for a large network, where each
costs a forward pass that takes long. Only if one of them changes the outputs is each group tried by itself.

Fresh networks are symmetric by accident: norms are ones and zeros, biases or layer scales zero. The test therefore runs
on a copy whose tensors all are made generic.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from c2m3_fl.symmetry.axes import Permutations, SpecError
from c2m3_fl.symmetry.exact import Exact
from c2m3_fl.symmetry.failures import sentence
from c2m3_fl.symmetry.graph import cast, convert, copied, undisturbed
from c2m3_fl.symmetry.groups import PermutationGroups
from c2m3_fl.symmetry.outputs import tensors_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Largest change of an output, relative to its largest element, that rounding explains."""
# A network that makes tensors of one type itself may run in this type only, or only without `Exact`.
_WAYS = ((torch.float64, True), (torch.float32, True), (torch.float64, False), (torch.float32, False))

_WRONG = "failed the proof: permuting it changes the outputs"
_WRONG_TOGETHER = "failed the proof: permuting it together with others changes the outputs"

_INPUTS = 2
_DRAWS = {True: 1, False: 4}
"""Draws of permutations for each input, by whether the network is large."""
_LARGE = 4_000_000
"""Number of elements from which a network counts as large: each draw takes a forward pass."""


Groups = TypeVar("Groups", bound=PermutationGroups)


@dataclass(frozen=True)
class Trial:
    """A network with generic tensors, ready to be tested.

    Attributes
    ----------
    state
        The tensors, by their names in the state dict.
    runs
        Inputs, each with the outputs for `state`.
    forward
        Outputs for a state and an input.
    tolerance
        See `TOLERANCE`.
    """

    state: Mapping[str, Tensor]
    runs: Sequence[tuple[Any, Sequence[Tensor]]]
    forward: Callable[[Mapping[str, Tensor], Any], list[Tensor]]
    tolerance: float

    def change(self, spec: PermutationGroups, permutations: Permutations, run: int = 0) -> float:
        """Largest relative change of any output under permutations; infinite where other than numbers differ."""
        inputs, reference = self.runs[run]
        return _difference(reference, self.forward(spec.apply(self.state, permutations), inputs))


def prove(
    spec: Groups, module: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], *, seed: int = 0
) -> Groups:
    """Test a spec and pin the groups that fail.

    Parameters
    ----------
    spec
        The spec to test.
    module
        The network, which stays as it is.
    inputs, kwargs
        Example inputs; the test draws random ones like them.
    seed
        Seed of all that is random here.

    Raises
    ------
    SpecError
        If the network's outputs for random inputs are not finite, or differ between two equal runs.
    """
    generator = torch.Generator().manual_seed(seed)
    trial = prepare(module, inputs, kwargs, generator)
    if not _fails(trial, spec, spec, generator):
        return spec
    if trial.change(spec, {}) > trial.tolerance:
        raise SpecError(
            "the proof cannot run: two equal runs of the network in eval mode differ; pass prove=False if you trust the "
            "trace"
        )
    wrong = {group for group in spec.groups if _fails(trial, spec, _only(spec, {group}), generator)}
    spec = spec.pinned(dict.fromkeys(wrong, _WRONG))
    while spec.groups and _fails(trial, spec, spec, generator):
        # Each passes by itself but not with the others, which no sound trace allows: keep those that pass together.
        kept: set[str] = set()
        for group in spec.groups:
            if not _fails(trial, spec, _only(spec, kept | {group}), generator):
                kept.add(group)
        rest = set(spec.groups) - kept
        if not rest:
            break
        spec = spec.pinned(dict.fromkeys(rest, _WRONG_TOGETHER))
    return spec


def largest_change(
    spec: PermutationGroups, module: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], *, seed: int = 1
) -> float:
    """Largest relative change of an output under random permutations of all groups at once."""
    generator = torch.Generator().manual_seed(seed)
    trial = prepare(module, inputs, kwargs, generator)
    return trial.change(spec, spec.random(generator)) if spec.groups else 0.0


def prepare(module: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], generator: torch.Generator) -> Trial:
    """Copy a network, make its tensors generic and run it on random inputs.

    Raises
    ------
    SpecError
        If it runs neither in double nor in single precision, or gives outputs that are not finite or not repeatable.
    """
    failure: Exception | None = None
    for dtype, exact in _WAYS:
        try:
            trial = _prepare(module, (inputs, kwargs), generator, dtype, exact=exact)
        except SpecError:
            raise
        except Exception as error:
            failure = failure or error
            continue
        return trial
    assert failure is not None
    raise SpecError(
        f"the proof cannot run: the network fails on random inputs like the examples ({sentence(failure)}); pass "
        "prove=False if you trust the trace"
    ) from failure


def _prepare(
    module: nn.Module,
    examples: tuple[Sequence[Any], Mapping[str, Any]],
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    exact: bool,
) -> Trial:
    own = copied(module).eval().requires_grad_(False)
    convert(own, dtype)
    state = generic_state(own, generator)

    def forward(state: Mapping[str, Tensor], example: Any) -> list[Tensor]:
        args, named = example
        # Buffers that the network updates as it runs must not change the state under test.
        fresh = {name: tensor.clone() if name in buffers else tensor for name, tensor in state.items()}
        with torch.no_grad(), undisturbed(), Exact(dtype) if exact else contextlib.nullcontext():
            torch.default_generator.manual_seed(0)
            return tensors_of(functional_call(own, fresh, tuple(args), dict(named), tie_weights=False))

    buffers = {name for name, _ in own.named_buffers()}
    runs = []
    for _ in range(_INPUTS):
        example = tree_map(lambda leaf: _like(leaf, dtype, generator), (list(examples[0]), dict(examples[1])))
        outputs = forward(state, example)
        if any(_says_nothing(leaf) for leaf in outputs):
            raise SpecError(
                "the proof cannot run: with generic weights the network's outputs are not finite on random inputs like "
                "the examples; pass prove=False if you trust the trace"
            )
        runs.append((example, outputs))
    return Trial(state, runs, forward, TOLERANCE[dtype if exact else torch.float32])


def generic_state(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A state dict of a network without accidental symmetries, scaled so that signals neither die nor explode."""
    state = module.state_dict(keep_vars=True)
    made: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in made:
            made[id(tensor)] = _generic(tensor.detach(), isinstance(tensor, nn.Parameter), generator)
    return {name: made[id(tensor)] for name, tensor in state.items()}


def _generic(tensor: Tensor, parameter: bool, generator: torch.Generator) -> Tensor:
    if tensor.is_complex():
        return torch.view_as_complex(_generic(torch.view_as_real(tensor), parameter, generator))
    if not tensor.is_floating_point() or not tensor.numel() or not bool(tensor.isfinite().all()):
        return tensor.clone()
    factor = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
    largest = float(tensor.abs().max())
    spread = float(tensor.std()) if tensor.numel() > 1 else 0.0
    if not parameter:
        # A buffer may have to stay positive, as variances do.
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
        return tensor * factor if float(tensor.min()) > 0 else tensor + 0.3 * max(spread, 0.1) * noise
    if largest > 1e-3:
        return tensor * factor
    # All zero or nearly so, like a fresh bias, layer scale or last layer of a branch.
    fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
    return noise * (0.3 if fan_in == 1 else 1 / math.sqrt(fan_in))


def _like(leaf: Any, dtype: torch.dtype, generator: torch.Generator) -> Any:
    """A random input like an example: floats of its mean and spread, integers from its range."""
    if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool or not leaf.numel():
        return leaf
    if leaf.is_complex():
        return torch.view_as_complex(_like(torch.view_as_real(leaf.resolve_conj()), dtype, generator))
    if not leaf.is_floating_point():
        low, high = int(leaf.long().min()), int(leaf.long().max())
        return torch.randint(low, high + 1, leaf.shape, generator=generator).to(leaf)
    leaf = cast(leaf, dtype)
    if not bool(leaf.isfinite().all()):
        return leaf
    spread = float(leaf.std()) if leaf.numel() > 1 else 0.0
    noise = torch.randn(leaf.shape, generator=generator, dtype=dtype).to(leaf.device)
    return leaf.mean() + (spread if spread > 1e-6 else 1.0) * noise


def _fails(trial: Trial, spec: PermutationGroups, tested: PermutationGroups, generator: torch.Generator) -> bool:
    """Whether any of several draws of the tested spec's groups changes the outputs."""
    if not tested.groups:
        return False
    large = sum(tensor.numel() for tensor in trial.state.values()) > _LARGE
    return any(
        trial.change(spec, tested.random(generator), run) > trial.tolerance
        for run in range(len(trial.runs))
        for _ in range(_DRAWS[large])
    )


def _only(spec: PermutationGroups, groups: set[str]) -> PermutationGroups:
    return spec.pinned(dict.fromkeys(set(spec.groups) - groups, ""))


def _says_nothing(output: Tensor) -> bool:
    """Whether an output is no number anywhere, or finite nowhere; some that are infinite by design are fine."""
    if not output.numel() or not (output.is_floating_point() or output.is_complex()):
        return False
    return bool(output.isnan().any()) or not bool(output.isfinite().any())


def _difference(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    largest = 0.0
    for a, b in zip(reference, outputs, strict=True):
        if a.shape != b.shape:
            return math.inf
        if not a.numel():
            continue
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()) or not torch.equal(a[~finite], b[~finite]):
            return math.inf
        if a.is_floating_point() or a.is_complex():
            scale = float(a[finite].abs().max())
            gap = float((a - b)[finite].abs().max())
            largest = max(largest, gap / scale if scale else gap)
        elif not torch.equal(a, b):
            return math.inf
    return largest
