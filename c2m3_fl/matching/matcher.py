"""What every matcher takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from c2m3_fl.matching.problem import MatchingProblem


@dataclass(frozen=True)
class Iteration:
    """One iteration of a matcher.

    Attributes
    ----------
    phase
        The algorithm that made it, for example ``"frank-wolfe"``.
    objective
        The objective after it: soft while Frank-Wolfe runs, hard in coordinate ascent.
    step_size
        Frank-Wolfe's step in [0, 1]; None elsewhere.
    """

    phase: str
    objective: float
    step_size: float | None = None


@dataclass(frozen=True)
class Matching:
    """A matcher's result.

    Attributes
    ----------
    permutations
        Per group, LongTensor of shape ``(clients, size)``: indices by which each client is mapped to the universe.
    iterations
        What happened, in order; the first entry of a phase is the objective at its start.
    """

    permutations: list[Tensor]
    iterations: tuple[Iteration, ...]


class Matcher(Protocol):
    """Finds permutations of all clients into one universe."""

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        ...


@dataclass(frozen=True)
class Identity:
    """No matching: every client stays as it is. With it, averaging in the universe is federated averaging."""

    def match(self, problem: MatchingProblem) -> Matching:
        """Return the identity."""
        permutations = problem.identity()
        return Matching(permutations, (Iteration("identity", problem.objective(permutations)),))
