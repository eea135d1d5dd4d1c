"""MergeMany: each client in random order is matched with the mean of the others, until nothing moves.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, Algorithm 2; C2M3, Algorithm 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from c2m3_fl.matching.matcher import Iteration, Matching, finished
from c2m3_fl.matching.problem import MatchingProblem
from c2m3_fl.matching.universe import Universe


@dataclass(frozen=True)
class MergeMany:
    """Weight matching with the (weighted) mean of the other clients, in random order of clients and layers.

    Parameters
    ----------
    seed
        Of the orders of clients and of layers. The result depends on it.
    max_rounds
        Upper bound on the number of rounds over all clients.
    max_sweeps
        Upper bound on the number of sweeps over a client's layers in each of its visits.
    tolerance
        A layer's move must gain more than this share of the scale of its assignment's entries.
    """

    seed: int = 0
    max_rounds: int = 100
    max_sweeps: int = 100
    tolerance: float = 1e-6

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        random = np.random.default_rng(self.seed)
        universe = Universe(problem, problem.identity(), self.tolerance)
        started = problem.identity_objective
        iterations = [Iteration("merge-many", started)]
        for _ in range(self.max_rounds):
            moves = sum(self._visit(universe, client, random) for client in random.permutation(problem.clients))
            universe.refresh()
            iterations.append(Iteration("merge-many", started + universe.gained))
            if not moves:
                break
        return finished(problem, universe.permutations, iterations)

    def _visit(self, universe: Universe, client: int, random: np.random.Generator) -> int:
        """Weight matching of one client with the others as they are now; return the number of moves."""
        total = 0
        for _ in range(self.max_sweeps):
            moves = universe.settle(client, random.permutation(len(universe.permutations)).tolist())
            if not moves:
                break
            total += moves
        return total
