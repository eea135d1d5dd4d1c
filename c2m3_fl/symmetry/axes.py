"""Permutation groups of a network: which axes of which tensors move together.

A *permutation group* is one set of neurons (or channels, heads, ...). Reordering it leaves the network's function as it
is, provided that every axis of every tensor that carries the group is reordered alike (C2M3, section 2, "Weight-space
symmetries").

An axis is a concatenation of *segments*, a segment a product of *factors*, and a factor may carry a group. In writing:

- ``"hidden"``: the axis is the group ``hidden``;
- ``"784"``: 784 positions that never move;
- ``"channels*49"``: the flattened ``(channels, 7, 7)`` in front of a classifier;
- ``"4*hidden"``: the four stacked gates of an LSTM;
- ``"stem + branch + 3"``: a concatenation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Permutations = Mapping[str, Tensor]
"""Per group, the LongTensor of indices by which `index_select` reorders every axis that carries the group."""


class SpecError(ValueError):
    """A permutation spec, or a set of permutations, that is malformed or does not fit the tensors it is used on."""


@dataclass(frozen=True)
class Factor:
    """One factor of a segment: `size` positions, permuted by `group`, or fixed where `group` is None."""

    size: int
    group: str | None = None

    def __str__(self) -> str:
        return self.group if self.group is not None else str(self.size)


@dataclass(frozen=True)
class Segment:
    """A product of factors, the last one varying fastest."""

    factors: tuple[Factor, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return math.prod(factor.size for factor in self.factors)

    def __str__(self) -> str:
        return "*".join(map(str, self.factors))


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: a concatenation of segments."""

    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(segment.size for segment in self.segments)

    @property
    def groups(self) -> frozenset[str]:
        """Names of the groups that act on this axis."""
        return frozenset(f.group for s in self.segments for f in s.factors if f.group is not None)

    def __str__(self) -> str:
        return " + ".join(map(str, self.segments))

    @classmethod
    def parse(cls, text: str | int, groups: Mapping[str, int]) -> Axis:
        """Read an axis as written in the module's docstring.

        Parameters
        ----------
        text
            The axis in writing; an integer stands for a fixed axis of that size.
        groups
            Size of each group that the text may name.

        Raises
        ------
        SpecError
            If the text names an unknown group or is no axis.
        """

        def factor(word: str) -> Factor:
            word = word.strip()
            if word.isdecimal():
                return Factor(int(word))
            if word not in groups:
                raise SpecError(f"axis {text!r} names the group {word!r}; the known groups are {sorted(groups)}")
            return Factor(groups[word], word)

        segments = str(text).split("+")
        return cls(tuple(Segment(tuple(factor(word) for word in segment.split("*"))) for segment in segments))

    def index(self, permutations: Permutations) -> Tensor | None:
        """Positions to gather along this axis, or None where no permuted group acts on it.

        Returns
        -------
        Tensor or None
            LongTensor of shape ``(size,)`` on the CPU.
        """
        if not any(group in permutations for group in self.groups):
            return None
        pieces: list[Tensor] = []
        offset = 0
        for segment in self.segments:
            positions = torch.zeros(1, dtype=torch.long)
            for factor in segment.factors:
                if factor.group is not None and factor.group in permutations:
                    order = permutations[factor.group].cpu()
                else:
                    order = torch.arange(factor.size)
                positions = (positions[:, None] * factor.size + order[None, :]).reshape(-1)
            pieces.append(positions + offset)
            offset += segment.size
        return torch.cat(pieces)


def compose(first: Permutations, then: Permutations) -> dict[str, Tensor]:
    """The permutations whose `apply` equals applying `first` and then `then`."""
    return {group: order[then[group]] for group, order in first.items()}


def invert(permutations: Permutations) -> dict[str, Tensor]:
    """The permutations that undo `permutations`."""
    return {group: torch.argsort(order) for group, order in permutations.items()}
