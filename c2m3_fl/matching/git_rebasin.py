"""Git Re-Basin's weight matching: one layer at a time in random order, pair by pair.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries", ICLR 2023,
Algorithm 1. The paper this project implements compares with it (C2M3, Sections 4.1 and B.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from c2m3_fl.matching.matcher import Matching
from c2m3_fl.matching.problem import MatchingProblem
from c2m3_fl.matching.reference import match_to_reference
from c2m3_fl.matching.universe import Universe


@dataclass(frozen=True)
class GitReBasin:
    """Weight matching of each client with a reference: random layer order, until no layer moves.

    Parameters
    ----------
    seed
        Of the order of layers. The result depends on it.
    reference
        Position of the reference among the clients; `c2m3_fl.align` sorts them by content first.
    max_sweeps
        Upper bound on the number of sweeps over the layers.
    tolerance
        A layer's move must gain more than this share of the scale of its assignment's entries.
    """

    seed: int = 0
    reference: int = 0
    max_sweeps: int = 100
    tolerance: float = 1e-6

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        random = np.random.default_rng(self.seed)
        return match_to_reference(problem, self.reference, "git-re-basin", lambda pair: self._solve(pair, random))

    def _solve(self, pair: MatchingProblem, random: np.random.Generator) -> list[Tensor]:
        universe = Universe(pair, pair.identity(), self.tolerance)
        for _ in range(self.max_sweeps):
            if not universe.settle(1, random.permutation(len(pair.group_sizes)).tolist()):
                break
        return universe.permutations
