"""Coordinate ascent in the universe: one client and one group at a time, each by one exact assignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from c2m3_fl.matching.matcher import Iteration, Matching, finished
from c2m3_fl.matching.problem import MatchingProblem
from c2m3_fl.matching.universe import Universe


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

    Memory: that of `Universe`.
    """

    max_sweeps: int = 100
    tolerance: float = 1e-6
    least_gain: float = 0.0
    coarse: bool = False

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem from the identity."""
        return self.improve(problem, problem.identity(), problem.identity_objective)

    def improve(
        self, problem: MatchingProblem, permutations: Sequence[Tensor], objective: float | None = None
    ) -> Matching:
        """Ascend from given permutations (per group, shape ``(clients, size)``), and their objective if it is known."""
        started = problem.objective(permutations) if objective is None else objective
        universe = Universe(problem, permutations, self.tolerance, self.coarse)
        iterations = [Iteration("coordinate-ascent", started)]
        for _ in range(self.max_sweeps):
            moves = sum(universe.settle(client) for client in range(problem.clients))
            universe.refresh()
            iterations.append(Iteration("coordinate-ascent", started + universe.gained))
            if moves and universe.largest_gain() >= self.least_gain:
                continue
            if not universe.refine():
                break
        return finished(problem, universe.permutations, iterations)
