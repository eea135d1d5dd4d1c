"""Mapping to a reference model: each client is matched with one of them, pair by pair, without regard to the others.

Maps between two clients are then composed through the reference, so they are cycle-consistent too, but the choice of the
reference matters, and clients that the reference does not resemble are matched poorly with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from c2m3_fl.matching.default import UniverseMatcher
from c2m3_fl.matching.matcher import Iteration, Matcher, Matching
from c2m3_fl.matching.problem import Block, MatchingProblem

PairSolver = Callable[[MatchingProblem], list[Tensor]]
"""From a problem of two clients to permutations, per group of shape ``(2, size)``."""


@dataclass(frozen=True)
class ToReference:
    """Match each client with the reference on its own, by any matcher.

    Parameters
    ----------
    pairwise
        Matches two clients.
    reference
        Position of the reference among the clients; `c2m3_fl.align` sorts them by content first.
    """

    pairwise: Matcher = field(default_factory=UniverseMatcher)
    reference: int = 0

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        return match_to_reference(
            problem, self.reference, "reference", lambda pair: self.pairwise.match(pair).permutations
        )


def match_to_reference(problem: MatchingProblem, reference: int, phase: str, solve: PairSolver) -> Matching:
    """Match each client with a reference by a solver for two.

    Parameters
    ----------
    problem
        The clients.
    reference
        Position of the client that all others are matched with.
    phase
        Name of the algorithm in the iterations.
    solve
        Matches two clients, the reference first.

    Raises
    ------
    ValueError
        If there is no such client.
    """
    if not 0 <= reference < problem.clients:
        raise ValueError(f"reference {reference} is none of the {problem.clients} clients, numbered from 0")
    permutations = problem.identity()
    started = problem.identity_objective
    for client in range(problem.clients):
        if client == reference:
            continue
        for orders, (of_reference, of_client) in zip(
            permutations, solve(_pair(problem, reference, client)), strict=True
        ):
            orders[client] = of_client[of_reference.argsort()]
    objective = problem.objective(permutations)
    return Matching(permutations, (Iteration(phase, started), Iteration(phase, objective)), objective)


def _pair(problem: MatchingProblem, reference: int, client: int) -> MatchingProblem:
    blocks = tuple(
        Block(block.groups, torch.stack([block.data[reference], block.data[client]])) for block in problem.blocks
    )
    return replace(problem, blocks=blocks, weights=(1.0, 1.0), constant=0.0, state_dicts=())
