r"""Algorithm 1 of the paper, written as the paper describes it: the baseline that timings are compared with.

The objective is the sum over pairs of clients, the gradient the paper's four terms by dense matrix products, the line
search a bounded scalar minimisation of the objective over all pairs, as in the paper's code. Nothing is shared between
pairs, iterations or evaluations. It works on the blocks of a `MatchingProblem`, like every matcher.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from scipy.optimize import linear_sum_assignment, minimize_scalar
from torch import Tensor

from c2m3_fl.matching import Block, Iteration, Matching, MatchingProblem

_SEARCH_TOLERANCE = 1e-3
_SEARCH_EVALUATIONS = 20


@dataclass(frozen=True)
class PairSumFrankWolfe:
    """Frank-Wolfe for n-model matching by the sum over pairs (C2M3, Algorithm 1).

    Parameters
    ----------
    iterations
        How many; there is no other stopping rule, so that an iteration can be timed.
    """

    iterations: int

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem from the identity."""
        maps = [torch.eye(size, dtype=problem.dtype).repeat(problem.clients, 1, 1) for size in problem.group_sizes]
        trace = [Iteration("pair-sum", pair_objective(problem, maps))]
        for _ in range(self.iterations):
            vertices = [_assign(gradient) for gradient in pair_gradients(problem, maps)]
            step = _search(problem, maps, vertices)
            maps = _between(maps, vertices, step)
            trace.append(Iteration("pair-sum", pair_objective(problem, maps), step))
        return Matching([_assign(each).argmax(dim=2) for each in maps], tuple(trace))


def pair_objective(problem: MatchingProblem, maps: list[Tensor]) -> float:
    """The objective (Eq. 4) of soft maps, pair by pair; per group, maps of shape ``(clients, size, size)``."""
    total = problem.constant
    for block in problem.blocks:
        for p, q in permutations(range(problem.clients), 2):
            scale = problem.weights[p] * problem.weights[q]
            total += scale * float(torch.sum(_image(block, maps, p) * _image(block, maps, q), dtype=torch.float64))
    return total


def pair_gradients(problem: MatchingProblem, maps: list[Tensor]) -> list[Tensor]:
    """Its gradient by every map, up to a factor of two (Eq. 5)."""
    gradients = [torch.zeros_like(each) for each in maps]
    for block in problem.blocks:
        for p, q in permutations(range(problem.clients), 2):
            other = _image(block, maps, q)
            for axis, group in enumerate(block.groups):
                own = _image(block, maps, p, leave_out=axis)
                rows, columns = (t.movedim(axis, 0).flatten(1) for t in (other, own))
                gradients[group][p] += problem.weights[p] * problem.weights[q] * (rows @ columns.T)
    return gradients


def _image(block: Block, maps: list[Tensor], client: int, leave_out: int | None = None) -> Tensor:
    image = block.data[client].cpu()
    for axis, group in enumerate(block.groups):
        if axis != leave_out:
            image = torch.tensordot(maps[group][client], image, dims=([1], [axis])).movedim(0, axis)
    return image


def _assign(gradients: Tensor) -> Tensor:
    vertices = torch.zeros_like(gradients)
    for vertex, gradient in zip(vertices, gradients, strict=True):
        rows, columns = linear_sum_assignment(gradient.numpy(), maximize=True)
        vertex[rows, columns] = 1.0
    return vertices


def _between(maps: list[Tensor], vertices: list[Tensor], step: float) -> list[Tensor]:
    return [(1.0 - step) * each + step * vertex for each, vertex in zip(maps, vertices, strict=True)]


def _search(problem: MatchingProblem, maps: list[Tensor], vertices: list[Tensor]) -> float:
    found = minimize_scalar(
        lambda step: -pair_objective(problem, _between(maps, vertices, step)),
        bounds=(0.0, 1.0),
        method="bounded",
        options={"xatol": _SEARCH_TOLERANCE, "maxiter": _SEARCH_EVALUATIONS},
    )
    return float(found.x)
