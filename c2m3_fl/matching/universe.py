r"""The clients as they are mapped, and their sum, kept up to date move by move: what coordinate ascent climbs on.

With everything else fixed, the objective is linear in one client's map of one group (unless a tensor carries the group on
two axes), so one assignment is the best move of its coordinate. The entries of an assignment's matrix are taken relative
to the client's present place in the universe,

.. math:: G_{ij} = \langle R_i, X_{p,j} \rangle, \qquad R = \sum_{q \ne p} w_q X_q,

so the present place is the diagonal, and only the mapped clients and their sum are kept.

For every group there is a matrix whose rows are its neurons, and whose columns are all that the blocks hold of them; a
block with k permuted axes stands in k matrices. So an assignment takes one product, however many blocks the group acts on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from c2m3_fl.matching.assignment import solve
from c2m3_fl.matching.problem import MatchingProblem, inner, multiply, on_host, weighted_sum


@dataclass(frozen=True)
class Part:
    """One block in the matrix of one of its groups.

    Attributes
    ----------
    block, axis
        Which block, sliced along which of its axes.
    group
        The group of that axis.
    shape
        Shape of the block with that axis first.
    groups
        The groups that act on the axes of `shape`, less its last one.
    start
        First of its columns.
    """

    block: int
    axis: int
    group: int
    shape: tuple[int, ...]
    groups: tuple[int, ...]
    start: int

    @property
    def width(self) -> int:
        """Number of its columns."""
        return math.prod(self.shape[1:])

    def view(self, matrix: Tensor) -> Tensor:
        """These columns of a client's matrix of the group, in the block's own shape."""
        return matrix[:, self.start : self.start + self.width].view(self.shape)

    def inner_axes(self, group: int) -> list[int]:
        """Axes of `shape`, but the first, that a group acts on."""
        return [axis for axis, other in enumerate(self.groups) if axis and other == group]


def parts(problem: MatchingProblem) -> list[list[Part]]:
    """Per group, the blocks that stand in its matrix, from left to right."""
    found: list[list[Part]] = [[] for _ in problem.group_sizes]
    for number, block in enumerate(problem.blocks):
        shape = tuple(block.data.shape[1:])
        for axis, group in enumerate(block.groups):
            moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
            groups = (group, *block.groups[:axis], *block.groups[axis + 1 :])
            start = sum(other.width for other in found[group])
            found[group].append(Part(number, axis, group, moved, groups, start))
    return found


class Universe:
    """The mapped clients and their weighted sum.

    Parameters
    ----------
    problem
        The clients.
    permutations
        Where they are, per group of shape ``(clients, size)``; copied.
    tolerance
        A move must gain more than this share of the scale of its assignment's entries.
    coarse
        Look for moves with products in bfloat16 where that is faster.

    Attributes
    ----------
    permutations
        Where the clients are.
    gained
        What all moves together have added to the objective.

    Notes
    -----
    Memory, in multiples of the clients' own size: 2 for linear and convolution layers, which have two permuted axes.
    """

    def __init__(
        self, problem: MatchingProblem, permutations: Sequence[Tensor], tolerance: float, coarse: bool = False
    ) -> None:
        self.problem = problem
        self.tolerance = tolerance
        self.permutations = [orders.clone() for orders in permutations]
        self.gained = 0.0
        self._dtypes = problem.product_dtypes(coarse)
        self._parts = parts(problem)
        self._also = [
            [part for own in self._parts for part in own if part.inner_axes(group)]
            for group in range(len(problem.group_sizes))
        ]
        self._touched = [{group, *(part.group for part in also)} for group, also in enumerate(self._also)]
        self._exact = [not any(part.inner_axes(group) for part in own) for group, own in enumerate(self._parts)]
        self._images = self._mapped()
        self._client_images = [[image[client] for image in self._images] for client in range(problem.clients)]
        self._columns = [[image.T for image in images] for images in self._client_images]
        self._views: dict[tuple[int, Part], Tensor] = {}
        self._others = [torch.empty_like(image[0]) for image in self._images]
        self._versions = [0] * len(self._images)
        self._seen: dict[tuple[int, int], int] = {}
        self._shares = [0.0] * len(self._images)
        self._scales: list[dict[int, float]] = [{} for _ in self._images]
        self.sums: list[Tensor] = []
        self.refresh()

    def _mapped(self) -> list[Tensor]:
        """Per group, the clients' matrices, shape ``(clients, size, columns)``."""
        images = self.problem.mapped(self.permutations)
        return [
            torch.cat([images[part.block].movedim(part.axis + 1, 1).flatten(2) for part in own], dim=2)
            for own in self._parts
        ]

    def refresh(self) -> None:
        """Sum the clients anew, which removes the rounding errors of the moves' updates."""
        self.sums = [weighted_sum(image, self.problem.weights) for image in self._images]

    def refine(self) -> bool:
        """Look for moves in full precision from here on, in every group; False if that was done already."""
        full = self.problem.product_dtypes(coarse=False)
        if self._dtypes == full:
            return False
        self._seen = {at: version for at, version in self._seen.items() if self._dtypes[at[1]] == full[at[1]]}
        self._dtypes = full
        return True

    def largest_gain(self) -> float:
        """The largest share of its part of the objective that a group gained since this was last asked."""
        shares = [gain / sum(scales.values()) for gain, scales in zip(self._shares, self._scales, strict=True) if gain]
        self._shares = [0.0] * len(self._shares)
        return max(shares, default=0.0)

    def settle(self, client: int, groups: Iterable[int] | None = None) -> int:
        """Visit each group of one client once, in the given order; return the number of groups that moved."""
        left: set[int] = set()
        moves = 0
        for group in range(len(self._images)) if groups is None else groups:
            if self._seen.get((client, group)) != self._versions[group]:
                self._leave(client, [group], left)
                moves += self._visit(client, group, left)
                self._seen[client, group] = self._versions[group]
        if moves:
            for group in left:
                image, weight = self._client_images[client][group], self.problem.weights[client]
                torch.add(self._others[group], image, alpha=weight, out=self.sums[group])
        return moves

    def _leave(self, client: int, groups: Iterable[int], left: set[int]) -> None:
        """Take a client out of groups' sums, once a `settle`: its own moves do not change what the others are."""
        for group in groups:
            if group not in left:
                left.add(group)
                image, weight = self._client_images[client][group], self.problem.weights[client]
                torch.sub(self.sums[group], image, alpha=weight, out=self._others[group])

    def _visit(self, client: int, group: int, left: set[int]) -> bool:
        matrix = self._gradient(client, group).cpu().numpy()
        order = solve(matrix)
        new, old = matrix[np.arange(len(order)), order].astype(np.float64), matrix.diagonal().astype(np.float64)
        gain, scale = float(new.sum() - old.sum()), float(np.abs(new).sum())
        self._scales[group][client] = scale
        if gain <= self.tolerance * scale:
            return False
        moved = self._moved(client, group, torch.from_numpy(order))
        if not self._exact[group] or self._dtypes[group] != self.problem.dtype:
            gain = self._worth(client, group, moved[0])
            if gain <= self.tolerance * scale:
                return False
        self._leave(client, self._touched[group], left)
        self._keep(client, group, moved)
        self.permutations[group][client] = self.permutations[group][client][torch.from_numpy(order)]
        self._shares[group] += gain
        self.gained += 2.0 * self.problem.weights[client] * gain
        return True

    def _gradient(self, client: int, group: int) -> Tensor:
        others, columns, dtype = self._others[group], self._columns[client][group], self._dtypes[group]
        gradient = others.new_zeros(len(others), len(others))
        multiply(others.to(dtype), columns.to(dtype), gradient)
        return gradient

    def _moved(self, client: int, group: int, order: Tensor) -> list[Tensor]:
        """A group's matrix with its rows reordered, and all parts that carry the group inside, in the order of `_also`."""
        index = order.to(self.problem.device)
        rows = self._client_images[client][group].index_select(0, index)
        found = [rows]
        for part in self._also[group]:
            view = part.view(rows) if part.group == group else self._view(client, part)
            for axis in part.inner_axes(group):
                view = view.index_select(axis, index)
            if part.group == group:
                part.view(rows).copy_(view)
            found.append(view)
        return found

    def _view(self, client: int, part: Part) -> Tensor:
        if (client, part) not in self._views:
            self._views[client, part] = part.view(self._client_images[client][part.group])
        return self._views[client, part]

    def _worth(self, client: int, group: int, rows: Tensor) -> float:
        """What the client's inner product with the others grows by, in full precision, each block once."""
        now, others = self._client_images[client][group], self._others[group]
        once = {part.block: part for part in self._parts[group]}.values()
        pairs = [(part.view(each), part.view(others)) for each in (rows, now) for part in once]
        if self._exact[group]:
            pairs = [(rows, others), (now, others)]
        worth = on_host([inner(*pair) for pair in pairs])
        return sum(worth[: len(worth) // 2]) - sum(worth[len(worth) // 2 :])

    def _keep(self, client: int, group: int, moved: Sequence[Tensor]) -> None:
        self._client_images[client][group].copy_(moved[0])
        for part, view in zip(self._also[group], moved[1:], strict=True):
            if part.group != group:
                self._view(client, part).copy_(view)
        for touched in self._touched[group]:
            self._versions[touched] += 1
