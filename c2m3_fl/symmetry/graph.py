"""The ATen graph of a module, as `torch.export` records it."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from c2m3_fl.symmetry.axes import SpecError


def export(module: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], *, training: bool) -> ExportedProgram:
    """Record the operators that a module applies to example inputs.

    The module is copied first; neither its mode nor the global random state changes.

    Raises
    ------
    SpecError
        If the module cannot be copied or exported, for example because its control flow depends on data.
    """
    own = copied(module).train(training)
    try:
        with undisturbed():
            return torch.export.export(own, tuple(inputs), dict(kwargs), strict=False)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise SpecError(
            f"{type(module).__name__} cannot be traced: torch.export fails on the example inputs "
            f"({type(error).__name__}: {reason[0] if reason else 'no message'}). Control flow that depends on the values "
            "of tensors and operators without a fake implementation are the usual causes; rewrite the module without "
            "them, or write the spec by hand with PermutationSpec.from_axes."
        ) from error


def copied(module: nn.Module) -> nn.Module:
    """A deep copy.

    Raises
    ------
    SpecError
        If the module does not allow it.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise SpecError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}); tracing works on a copy so that "
            "yours stays as it is"
        ) from error


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the random state, and attention on its ordinary path, whose operators have rules."""
    fast = torch.backends.mha.get_fastpath_enabled()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
