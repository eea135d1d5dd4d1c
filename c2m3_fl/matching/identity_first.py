"""The identity where it needs no improvement: clients that trained for a short while from one network stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from c2m3_fl.matching.assignment import assign
from c2m3_fl.matching.certificate import certified_groups
from c2m3_fl.matching.matcher import Identity, Matcher, Matching
from c2m3_fl.matching.problem import MatchingProblem, gains, weighted_sum


@dataclass(frozen=True)
class IdentityFirst:
    """A matcher that proves, where it can, that the identity needs no improvement, and calls another where it cannot.

    Clients that trained for a short while from one network are aligned as they are. The proof costs one product of
    matrices per group where the clients are close (see `c2m3_fl.matching.certificate`), one per client and group where they
    are not, and fails at the first client then.

    Parameters
    ----------
    matcher
        What to do if there is no proof.
    """

    matcher: Matcher

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        if identity_is_optimal(problem):
            return Identity().match(problem)
        return self.matcher.match(problem)


def identity_is_optimal(problem: MatchingProblem) -> bool:
    r"""Whether no single assignment, of one client's neurons in one group, can gain over the identity.

    For client p and group g the objective is linear in the permutation, with :math:`R = \sum_{q \ne p} w_q X_q` and
    :math:`G_{ij}` the inner product of R's slice i with the client's slice j. The identity is optimal if the clients'
    neurons stay close to their means (`certified_groups`); failing that for a group, if for each client every diagonal entry
    is the largest of its row; failing that, if the assignment problem says so. All this certifies a coordinate-wise maximum,
    the same that ends a coordinate ascent. A group that acts twice on one tensor makes the objective quadratic: then there
    is no certificate.
    """
    if any(len(set(block.groups)) < block.order for block in problem.blocks):
        return False
    if problem.clients < 2:
        return True
    sums = [weighted_sum(block.data, problem.weights) for block in problem.blocks]
    doubtful = [group for group, certain in enumerate(certified_groups(problem, sums)) if not certain]
    return not doubtful or no_assignment_gains(problem, sums, doubtful)


def no_assignment_gains(problem: MatchingProblem, sums: Sequence[Tensor], groups: Sequence[int]) -> bool:
    """The exact test, for every client and the given groups.

    Parameters
    ----------
    problem
        The clients. No group acts twice on a block.
    sums
        Per block, the weighted sum over clients, shape ``(*group sizes, rest)``.
    groups
        Which groups to test.
    """
    images = [block.data for block in problem.blocks]
    for client, weight in enumerate(problem.weights):
        others = {
            number: torch.sub(total, images[number][client], alpha=weight)
            for number, total in enumerate(sums)
            if not set(groups).isdisjoint(problem.blocks[number].groups)
        }
        for group in groups:
            if not _diagonal_is_optimal(gains(problem, group, images, client, others)):
                return False
    return True


def _diagonal_is_optimal(matrix: Tensor) -> bool:
    diagonal, largest = matrix.diagonal(), matrix.amax(dim=1)
    threshold = _TOLERANCE * float(largest.abs().sum())
    if float((largest - diagonal).double().sum()) <= threshold:
        return True
    matrix = matrix.cpu()
    gained = matrix.gather(1, assign(matrix)[:, None]).double().sum() - matrix.diagonal().double().sum()
    return float(gained) <= threshold


_TOLERANCE = 1e-6
