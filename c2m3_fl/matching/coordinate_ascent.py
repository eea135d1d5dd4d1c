r"""Coordinate ascent in the universe: one client and one group at a time, each by one exact assignment.

With everything else fixed, the objective is linear in one client's map of one group (unless a tensor carries the group on
two axes), so each assignment is the best move of its coordinate and the hard objective never decreases. The entries of an
assignment's matrix are taken relative to the client's present place in the universe,

.. math:: G_{ij} = \langle R_i, X_{p,j} \rangle, \qquad R = \sum_{q \ne p} w_q X_q,

so the present place is the diagonal, and only the mapped clients and their sum are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from c2m3_fl.matching.assignment import assign
from c2m3_fl.matching.matcher import Iteration, Matching
from c2m3_fl.matching.problem import MatchingProblem, gains, inner, on_host, pair_sum, weighted_sum


@dataclass(frozen=True)
class CoordinateAscent:
    """Sweeps over clients and groups until no single move gains.

    Parameters
    ----------
    max_sweeps
        Upper bound on the number of sweeps over all clients, coarse ones included.
    tolerance
        A move must gain more than this share of the scale of its assignment's entries; keeps rounding errors from
        moving neurons that make no difference.
    least_gain
        The sweeps end after one in which no group gained more than this share of its own part of the objective. With 0
        they go on to a local optimum; with many clients the last sweeps are many, and gain little.
    coarse
        Look for moves with products in bfloat16 where that is faster (see `MatchingProblem.product_dtypes`), and make
        those that gain in full precision; once they end, look again in full precision.

    Notes
    -----
    The moves are those of Git Re-Basin's weight matching and of MergeMany, in a fixed order and with each client's present
    place known, so that what did not change is not visited again.

    Memory, in multiples of the clients' own size: 1, and 2 blocks of one client.
    """

    max_sweeps: int = 100
    tolerance: float = 1e-6
    least_gain: float = 0.0
    coarse: bool = False

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem from the identity."""
        return self.improve(problem, problem.identity())

    def improve(self, problem: MatchingProblem, permutations: Sequence[Tensor]) -> Matching:
        """Ascend from given permutations (per group, shape ``(clients, size)``)."""
        universe = Universe(problem, permutations, self.tolerance, self.coarse)
        iterations = [Iteration("coordinate-ascent", universe.objective())]
        for _ in range(self.max_sweeps):
            moves = sum(universe.settle(client) for client in range(problem.clients))
            universe.refresh()
            iterations.append(Iteration("coordinate-ascent", universe.objective()))
            if moves and universe.largest_gain() >= self.least_gain:
                continue
            if not universe.refine():
                break
        return Matching(universe.permutations, tuple(iterations))


class Universe:
    """The mapped clients and their weighted sum, kept up to date move by move.

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
    """

    def __init__(
        self, problem: MatchingProblem, permutations: Sequence[Tensor], tolerance: float, coarse: bool = False
    ) -> None:
        self.problem = problem
        self.tolerance = tolerance
        self.dtypes = problem.product_dtypes(coarse)
        self.permutations = [orders.clone() for orders in permutations]
        self.images = problem.mapped(self.permutations)
        self.sums: list[Tensor] = []
        self.blocks_of = [
            [number for number, block in enumerate(problem.blocks) if group in block.groups]
            for group in range(len(problem.group_sizes))
        ]
        self.exact = [
            all(problem.blocks[number].groups.count(group) == 1 for number in blocks)
            for group, blocks in enumerate(self.blocks_of)
        ]
        self.versions = [0] * len(problem.blocks)
        self.seen: dict[tuple[int, int], list[int]] = {}
        self.gained = [0.0] * len(self.blocks_of)
        self.parts: list[dict[int, float]] = [{} for _ in self.blocks_of]
        self.refresh()

    def refresh(self) -> None:
        """Sum the clients anew, which removes the rounding errors of the moves' updates."""
        self.sums = [weighted_sum(image, self.problem.weights) for image in self.images]

    def refine(self) -> bool:
        """Look for moves in full precision from here on, in every group; False if that was done already."""
        full = self.problem.product_dtypes(coarse=False)
        if self.dtypes == full:
            return False
        self.seen = {at: version for at, version in self.seen.items() if self.dtypes[at[1]] == full[at[1]]}
        self.dtypes = full
        return True

    def objective(self) -> float:
        """The hard objective; only right after `refresh`."""
        return self.problem.constant + pair_sum(self.images, self.sums, self.problem.weights)

    def largest_gain(self) -> float:
        """The largest share of its part of the objective that a group gained since this was last asked."""
        shares = [gain / sum(parts.values()) for gain, parts in zip(self.gained, self.parts, strict=True) if gain]
        self.gained = [0.0] * len(self.gained)
        return max(shares, default=0.0)

    def settle(self, client: int, groups: Iterable[int] | None = None) -> int:
        """Visit each group of one client once, in the given order; return the number of groups that moved."""
        others: dict[int, Tensor] = {}
        moves = 0
        for group in range(len(self.blocks_of)) if groups is None else groups:
            if self.seen.get((client, group)) == self._version(group):
                continue
            for number in self.blocks_of[group]:
                if number not in others:
                    weight = self.problem.weights[client]
                    others[number] = torch.sub(self.sums[number], self.images[number][client], alpha=weight)
            moves += self._move(client, group, others)
            self.seen[client, group] = self._version(group)
        return moves

    def _version(self, group: int) -> list[int]:
        return [self.versions[number] for number in self.blocks_of[group]]

    def _move(self, client: int, group: int, others: dict[int, Tensor]) -> bool:
        matrix = gains(self.problem, group, self.images, client, others, dtype=self.dtypes[group]).cpu()
        order = assign(matrix)
        new, old = matrix.gather(1, order[:, None]).double(), matrix.diagonal().double()
        gain, part = float(new.sum() - old.sum()), float(new.abs().sum())
        self.parts[group][client] = part
        if gain <= self.tolerance * part:
            return False
        index = order.to(self.problem.device)
        moved = {number: self._reordered(number, client, group, index) for number in self.blocks_of[group]}
        if not self.exact[group] or self.dtypes[group] != self.problem.dtype:
            worth = on_host(
                [inner(x, others[number]) for number, y in moved.items() for x in (y, self.images[number][client])]
            )
            gain = sum(worth[::2]) - sum(worth[1::2])
            if gain <= self.tolerance * part:
                return False
        self.gained[group] += gain
        for number, image in moved.items():
            self.images[number][client].copy_(image)
            self.sums[number] = torch.add(others[number], image, alpha=self.problem.weights[client])
            self.versions[number] += 1
        self.permutations[group][client] = self.permutations[group][client][order]
        return True

    def _reordered(self, number: int, client: int, group: int, index: Tensor) -> Tensor:
        image = self.images[number][client]
        for axis in self.problem.blocks[number].axes_of(group):
            image = image.index_select(axis, index)
        return image
