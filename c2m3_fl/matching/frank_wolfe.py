r"""Frank-Wolfe for n-model matching (C2M3, Algorithm 1), with no matrix products but the gradient's.

The vertex :math:`\Pi` of each step is a hard permutation, so a soft map :math:`P' = (1-\alpha)P + \alpha\Pi` changes every
mapped block by gathers alone. For a block with k permuted axes we keep, per subset of its axes, the block mapped along
that subset only; the full subset is X, and the subsets that leave out one axis are what the gradient contracts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from c2m3_fl.matching.assignment import assign_all
from c2m3_fl.matching.line_search import bernstein, maximise_on_unit_interval
from c2m3_fl.matching.matcher import Iteration, Matching
from c2m3_fl.matching.problem import Block, MatchingProblem, contract, gather, inner, on_host, weighted_sum
from c2m3_fl.matching.starts import Start, apply_soft, start_maps


@dataclass(frozen=True)
class FrankWolfe:
    """The paper's matcher: all layers and clients at once, exact line search, rounding at the end.

    Parameters
    ----------
    start
        ``"identity"``, as in the paper's Algorithm 1; ``"barycentre"`` or ``"sinkhorn"``, as in its appendix B.2.
    seed
        Of the ``"sinkhorn"`` start.
    max_iterations
        Upper bound on the number of steps.
    tolerance
        Stop after `patience` steps in a row that gain less than this share of the objective's absolute value.
    patience
        See `tolerance`.

    Notes
    -----
    Source: C2M3, Algorithm 1. The line search is exact: along a step the objective is a polynomial of degree twice the
    largest number of permuted axes of a tensor, a quartic for ordinary layers, whose maximum over [0, 1] is at a root of
    its derivative or at an end. Hence the objective never decreases. The paper's code searches numerically.

    Memory, in multiples of the clients' own size: up to 7 for linear and convolution layers (the subsets' four, the
    search's two and one temporary block).
    """

    start: Start = "identity"
    seed: int = 0
    max_iterations: int = 200
    tolerance: float = 1e-7
    patience: int = 5

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        with ThreadPoolExecutor() as executor:
            soft, iterations = self.ascend(problem, executor)
            hard = list(assign_all(soft, executor))
        return Matching(hard, iterations)

    def ascend(
        self, problem: MatchingProblem, executor: ThreadPoolExecutor
    ) -> tuple[list[Tensor], tuple[Iteration, ...]]:
        """The soft maps before they are rounded, per group of shape ``(clients, size, size)``, and the iterations."""
        maps = _SoftMaps(start_maps(problem, self.start, self.seed))
        states = [SoftBlock(block, problem.weights) for block in problem.blocks]
        if self.start != "identity":
            for state in states:
                state.set_maps(maps.matrices)
        iterations: list[Iteration] = []
        small_gains = 0
        while len(iterations) <= self.max_iterations and small_gains < self.patience:
            vertices = list(assign_all(gradients(problem, states), executor))
            search = sum((state.search(vertices) for state in states), Polynomial([problem.constant]))
            if not iterations:
                iterations.append(Iteration("frank-wolfe", float(search(0.0))))
            step = maximise_on_unit_interval(search)
            for state in states:
                state.move(vertices, step)
            maps.move(vertices, step)
            objective = float(search(step))
            gain = objective - iterations[-1].objective
            small_gains = small_gains + 1 if gain <= self.tolerance * abs(objective) else 0
            iterations.append(Iteration("frank-wolfe", objective, step))
        return maps.matrices, tuple(iterations)


class _SoftMaps:
    """The soft permutations themselves, which only the last rounding needs: per group ``(clients, size, size)``."""

    def __init__(self, matrices: list[Tensor]) -> None:
        self.matrices = matrices

    def move(self, vertices: list[Tensor], step: float) -> None:
        for matrices, orders in zip(self.matrices, vertices, strict=True):
            matrices.mul_(1.0 - step)
            moved = torch.full(orders.shape, step, dtype=matrices.dtype)[..., None]
            matrices.scatter_add_(2, orders[..., None], moved)


class SoftBlock:
    """A block under soft maps.

    `subsets[m]` is the block mapped along the axes whose bits are set in m: ``subsets[0]`` is the client's own data,
    ``subsets[-1]`` its image in the universe.
    """

    def __init__(self, block: Block, weights: tuple[float, ...]) -> None:
        self.block = block
        self.weights = weights
        self.full = (1 << block.order) - 1
        self.subsets = [block.data] * (self.full + 1)
        self.parts: list[Tensor] = []

    def set_maps(self, maps: Sequence[Tensor]) -> None:
        """Map the block by soft maps, per group of shape ``(clients, size, size)``."""
        for axis, group in enumerate(self.block.groups):
            for kept in range(len(self.subsets)):
                if not kept >> axis & 1:
                    self.subsets[kept | 1 << axis] = apply_soft(self.subsets[kept], maps[group], axis)

    def gradient(self, group: int, weight_tensor: Tensor) -> Tensor:
        """The share of this block in the gradient by each client's map of a group, up to the positive factor 2 w_p."""
        image = self.subsets[self.full]
        others = weighted_sum(image, self.weights) - weight_tensor * image
        shares = [contract(others, self.subsets[self.full ^ (1 << axis)], axis) for axis in self.block.axes_of(group)]
        return sum(shares[1:], shares[0])

    def search(self, vertices: list[Tensor]) -> Polynomial:
        r"""The objective along the step as a polynomial in the step size.

        With :math:`B_j` the sum over the ways to move exactly j axes to the vertex, the image after a step is
        :math:`X(\alpha) = \sum_j \alpha^j (1-\alpha)^{k-j} B_j`, and the objective follows from the inner products of
        the :math:`B_j`.
        """
        degree = self.block.order
        self.parts = [self.subsets[self.full]]
        for moved in range(1, degree + 1):
            ways = [m for m in range(self.full + 1) if m.bit_count() == moved]
            part = self._vertex(self.full ^ ways[0], ways[0], vertices)
            for way in ways[1:]:
                part = part + self._vertex(self.full ^ way, way, vertices)
            self.parts.append(part)
        sums = [weighted_sum(part, self.weights) for part in self.parts]
        result = Polynomial([0.0])
        for a, b in combinations_with_replacement(range(degree + 1), 2):
            clients = zip(self.parts[a], self.parts[b], strict=True)
            total, *products = on_host([inner(sums[a], sums[b]), *(inner(x, y) for x, y in clients)])
            value = total - sum(w**2 * own for w, own in zip(self.weights, products, strict=True))
            result += (value if a == b else 2.0 * value) * bernstein(a + b, 2 * degree)
        return result

    def move(self, vertices: list[Tensor], step: float) -> None:
        """Make the step; only after `search` along the same vertices."""
        degree = self.block.order
        coefficients = [step**j * (1.0 - step) ** (degree - j) for j in range(degree + 1)]
        image = sum(
            (c * part for c, part in zip(coefficients[1:], self.parts[1:], strict=True)),
            coefficients[0] * self.parts[0],
        )
        new = list(self.subsets)
        for target in range(1, self.full):
            new[target] = self._mixed(target, vertices, step)
        if self.full:
            new[self.full] = image
        self.subsets = new
        self.parts = []

    def _mixed(self, target: int, vertices: list[Tensor], step: float) -> Tensor:
        total: Tensor | None = None
        for kept in _subsets_of(target):
            moved = target ^ kept
            share = self._vertex(kept, moved, vertices) * (step ** moved.bit_count() * (1.0 - step) ** kept.bit_count())
            total = share if total is None else total.add_(share)
        assert total is not None
        return total

    def _vertex(self, kept: int, moved: int, vertices: list[Tensor]) -> Tensor:
        """The block mapped softly along the axes `kept` and by the vertex along the axes `moved`."""
        axes = [axis for axis in range(self.block.order) if moved >> axis & 1]
        return gather(self.subsets[kept], axes, self.block.groups, vertices)


def gradients(problem: MatchingProblem, states: list[SoftBlock]) -> Iterator[Tensor]:
    """Per group, the gradient by each client's map, up to the positive factor 2 w_p: shape ``(clients, size, size)``."""
    for group in range(len(problem.group_sizes)):
        shares = [
            state.gradient(group, problem.weight_tensor(state.block.order))
            for state in states
            if group in state.block.groups
        ]
        yield sum(shares[1:], shares[0])


def _subsets_of(mask: int) -> Iterator[int]:
    subset = mask
    while subset:
        yield subset
        subset = (subset - 1) & mask
    yield 0
