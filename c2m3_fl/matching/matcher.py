"""What every matcher takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    objective
        The hard objective at the permutations, where the matcher knows it, so that nobody computes it again.
    """

    permutations: list[Tensor]
    iterations: tuple[Iteration, ...]
    objective: float | None = None


def objective_of(problem: MatchingProblem, matching: Matching) -> float:
    """The hard objective of a matching, computed if the matcher did not tell."""
    return problem.objective(matching.permutations) if matching.objective is None else matching.objective


def finished(problem: MatchingProblem, permutations: list[Tensor], iterations: Sequence[Iteration]) -> Matching:
    """The result of a matcher that kept account of a hard objective: with it summed anew, in the last iteration too.

    Parameters
    ----------
    problem
        The clients.
    permutations
        The matcher's result.
    iterations
        What happened; the first one's objective is exact.
    """
    moved = iterations[-1].objective != iterations[0].objective
    objective = problem.objective(permutations) if moved else iterations[0].objective
    return Matching(permutations, (*iterations[:-1], replace(iterations[-1], objective=objective)), objective)


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
        objective = problem.identity_objective
        return Matching(problem.identity(), (Iteration("identity", objective),), objective)
