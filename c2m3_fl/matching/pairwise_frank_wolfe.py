"""Pairwise Frank-Wolfe (C2M3, Algorithm 3): one client is matched with another, which stays where it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from c2m3_fl.matching.block_frank_wolfe import SoftClients
from c2m3_fl.matching.matcher import Matching
from c2m3_fl.matching.problem import MatchingProblem
from c2m3_fl.matching.reference import match_to_reference


@dataclass(frozen=True)
class PairwiseFrankWolfe:
    """Frank-Wolfe of each client with a reference, exact line search, rounding at the end.

    Parameters
    ----------
    reference
        Position of the reference among the clients; `c2m3_fl.align` sorts them by content first.
    max_iterations
        Upper bound on the number of steps for each client.
    tolerance
        Stop after a step that gains less than this share of the objective's absolute value.
    """

    reference: int = 0
    max_iterations: int = 200
    tolerance: float = 1e-7

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        with ThreadPoolExecutor() as executor:
            return match_to_reference(
                problem, self.reference, "pairwise-frank-wolfe", lambda pair: self._solve(pair, executor)
            )

    def _solve(self, pair: MatchingProblem, executor: ThreadPoolExecutor) -> list[Tensor]:
        soft = SoftClients(pair)
        soft.start(pair.identity())
        objective = soft.objective()
        for _ in range(self.max_iterations):
            soft.step(1, executor)
            soft.refresh()
            before, objective = objective, soft.objective()
            if objective - before <= self.tolerance * abs(objective):
                break
        return soft.rounded(executor)
