"""Traced tensors: a shape with the extent of each axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.symbols import UNIT, Extent


@dataclass(frozen=True)
class Traced:
    """A tensor whose axes reorder independently of one another.

    Attributes
    ----------
    axes
        Extent of each axis.
    uniform
        Whether all elements are equal, whatever the parameters: such a tensor fits any reordering, so each use of it
        gets fresh symbols.
    source
        Name of the parameter or buffer, where the tensor is one.
    """

    axes: tuple[Extent, ...]
    uniform: bool = False
    source: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(map(symbols.size, self.axes))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    def with_axes(self, axes: Iterable[Extent]) -> Traced:
        """The same elements under other axes."""
        return Traced(tuple(axes), self.uniform)


@dataclass(frozen=True)
class Stacked:
    """A tensor whose other axes reorder differently at each position of one fixed axis, such as stacked q, k and v.

    Attributes
    ----------
    dim
        The fixed axis.
    members
        The tensor at each position along it, without that axis.
    """

    dim: int
    members: tuple[Traced, ...]

    @property
    def ndim(self) -> int:
        """Number of axes, the fixed one included."""
        return self.members[0].ndim + 1

    def join(self, why: str) -> Traced:
        """One tensor for all members: their axes are unified."""
        first = self.members[0]
        for member in self.members[1:]:
            unify_axes(first.axes, member.axes)
        axes = list(first.axes)
        axes.insert(self.dim, symbols.pinned(len(self.members), why))
        return Traced(tuple(axes))


Value = Traced | Stacked
"""What an operator of the graph takes and gives, beside numbers and lists."""


def unify_axes(left: Sequence[Extent], right: Sequence[Extent]) -> None:
    """Unify two lists of axes of one shape."""
    for a, b in zip(left, right, strict=True):
        symbols.unify(a, b)


def broadcast(tensors: Sequence[Traced]) -> Traced:
    """Unify tensors under broadcasting and give the axes of the result."""
    ndim = max((tensor.ndim for tensor in tensors), default=0)
    axes: list[Extent] = []
    for dim in range(-ndim, 0):
        extents = [tensor.axes[dim] for tensor in tensors if tensor.ndim >= -dim]
        wide = [extent for extent in extents if symbols.size(extent) != 1]
        for extent in wide[1:]:
            symbols.unify(wide[0], extent)
        axes.append(wide[0] if wide else UNIT)
    return Traced(tuple(axes), all(tensor.uniform for tensor in tensors))


def fixed(shape: Sequence[int], why: str) -> Traced:
    """A tensor that stays as it is."""
    return Traced(tuple(symbols.pinned(int(n), why) for n in shape))


def uniform(shape: Sequence[int]) -> Traced:
    """A tensor whose elements are all equal."""
    return Traced(tuple(symbols.free(int(n)) for n in shape), uniform=True)


def refreshed(tensor: Traced) -> Traced:
    """A uniform tensor with symbols of its own for one use; others as they are."""
    return uniform(tensor.shape) if tensor.uniform else tensor


def pin_all(tensor: Traced, why: str) -> None:
    """Pin every axis."""
    for extent in tensor.axes:
        symbols.pin(extent, why)


def fake_shape(value: object) -> tuple[int, ...] | None:
    """Shape of a tensor that the export recorded, or None for anything else."""
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else None
