"""What a client's tensors must be, and the check that they are so: one pass over them, made once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2m3_fl.errors import ClientError, StructureError

StateDict = Mapping[str, Tensor]
"""A network's tensors by name."""


@dataclass(frozen=True)
class Expected:
    """What a client's tensor must be.

    Attributes
    ----------
    shape, dtype
        Its shape and dtype. A tensor of another floating-point (integer) type is converted, if floating point (integers)
        is expected.
    infinite
        The tensor as it is before training, if it holds entries that are not finite, such as a causal mask or an observer's
        range: a client's may be like them, or finite.
    """

    shape: torch.Size
    dtype: torch.dtype
    infinite: Tensor | None = field(default=None, compare=False)

    def of_dtype(self, dtype: torch.dtype) -> Expected:
        """The same in another dtype, if the federation sends another than the module has."""
        infinite = self.infinite if self.infinite is None or dtype == self.dtype else self.infinite.to(dtype)
        return Expected(self.shape, dtype, infinite)


Layout = Mapping[str, Expected]
"""What a client's state dict must be, by name."""


def layout_of(state_dict: StateDict) -> dict[str, Expected]:
    """The layout of clients whose networks are like the given one."""
    return {name: _expected(tensor.detach()) for name, tensor in state_dict.items()}


def _expected(tensor: Tensor) -> Expected:
    finite = not _may_be_infinite(tensor.dtype) or bool(torch.isfinite(tensor).all())
    return Expected(tensor.shape, tensor.dtype, None if finite else tensor)


@dataclass(frozen=True)
class Client:
    """One client's network that was found to fit a layout.

    Attributes
    ----------
    state_dict
        Its tensors, in the layout's order and dtypes.
    sums
        Per tensor the sum of its entries, by which clients are told apart.
    """

    state_dict: StateDict
    sums: tuple[float, ...]


def examine(state_dict: Mapping[str, Any], layout: Layout) -> Client:
    """Check one client's tensors, in one pass over them.

    Parameters
    ----------
    state_dict
        Tensors or NumPy arrays by name.
    layout
        What they must be.

    Raises
    ------
    StructureError
        If a tensor is missing, unknown, or of another shape or kind.
    ClientError
        If it holds entries that are NaN or infinite.
    """
    if missing := [name for name in layout if name not in state_dict]:
        raise StructureError(f"tensor {missing[0]!r} is missing" + _and_more(missing))
    if unknown := [name for name in state_dict if name not in layout]:
        raise StructureError(f"tensor {unknown[0]!r} is not in the model" + _and_more(unknown))
    tensors = {name: fitting(name, state_dict[name], expected) for name, expected in layout.items()}
    sums = _sums(tensors.values())
    for (name, tensor), total in zip(tensors.items(), sums, strict=True):
        # Sums in float64 are finite if all entries are, and of float64 entries nearly always.
        if not math.isfinite(total) and not _is_allowed(tensor, layout[name].infinite):
            raise ClientError(f"tensor {name!r} has entries that are NaN or infinite")
    as_given = list(tensors) == list(state_dict) and all(tensors[name] is state_dict[name] for name in tensors)
    return Client(state_dict if as_given else tensors, tuple(sums))


def fitting(name: str, tensor: Any, expected: Expected) -> Tensor:
    """A tensor as it is expected.

    Raises
    ------
    StructureError
        If it is of another shape or kind of numbers.
    """
    if isinstance(tensor, np.ndarray):
        tensor = torch.from_numpy(tensor)
    if not isinstance(tensor, Tensor):
        raise StructureError(f"tensor {name!r} is of type {type(tensor).__name__}")
    if tensor.shape != expected.shape:
        raise StructureError(f"tensor {name!r} has shape {tuple(tensor.shape)}, not {tuple(expected.shape)}")
    if _kind(tensor.dtype) != _kind(expected.dtype):
        raise StructureError(f"tensor {name!r} is of {tensor.dtype}, not {expected.dtype}")
    found: Tensor = (tensor.detach() if tensor.requires_grad else tensor).to(expected.dtype)
    return found


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    return "float" if dtype.is_floating_point else "bool" if dtype == torch.bool else "integer"


def _may_be_infinite(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _sums(tensors: Iterable[Tensor]) -> list[float]:
    """Sums of the entries, real and imaginary parts alike, in float64; one transfer from a device."""
    found = [(torch.view_as_real(each) if each.is_complex() else each).sum(dtype=torch.float64) for each in tensors]
    devices = {each.device for each in found}
    if len(devices) == 1:
        return [float(total) for total in torch.stack(found).tolist()]
    return [float(total) for total in found]


def _is_allowed(tensor: Tensor, usual: Tensor | None) -> bool:
    finite = torch.isfinite(tensor)
    if usual is None:
        return bool(finite.all())
    reference = usual.to(tensor.device)
    return bool((finite | (tensor == reference) | (tensor.isnan() & reference.isnan())).all())


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
