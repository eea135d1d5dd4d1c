r"""Block-coordinate Frank-Wolfe for n-model matching: one client at a time, all of its groups jointly.

Algorithm 1 of C2M3 moves all clients at once towards where the others were. Here each client moves towards where the
others are (block-coordinate Frank-Wolfe, Lacoste-Julien et al. 2013, with the clients as blocks), so two clients cannot
change places for ever. Along the step of one client the objective is a polynomial of degree k, the largest number of
permuted axes of a tensor, a parabola for ordinary layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from c2m3_fl.matching.assignment import assign
from c2m3_fl.matching.line_search import along_step, maximise_on_unit_interval
from c2m3_fl.matching.matcher import Iteration, Matching
from c2m3_fl.matching.problem import MatchingProblem, contract, gather, inner, on_host, pair_sum, weighted_sum


@dataclass(frozen=True)
class BlockFrankWolfe:
    """Passes over the clients; each client in turn makes a Frank-Wolfe step in all of its groups.

    Parameters
    ----------
    max_passes
        Upper bound on the number of passes over the clients.
    tolerance
        Stop after a pass that gains less than this share of the objective's absolute value.
    coarse
        Take the gradients' products in bfloat16 where that is faster (see `MatchingProblem.product_dtypes`): the steps
        are then nearly, not exactly, the best along their directions.

    Notes
    -----
    Memory, in multiples of the clients' own size: up to 4 for linear and convolution layers (the client as it is, mapped
    along each axis, and along both), one matrix per client and group for the soft maps, and 3 blocks of one client.
    """

    max_passes: int = 10
    tolerance: float = 1e-6
    coarse: bool = False

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem from the identity."""
        return self.ascend(problem, SoftClients(problem, problem.identity(), coarse=self.coarse))

    def restart(self, problem: MatchingProblem, permutations: Sequence[Tensor], softness: float) -> Matching:
        """Start from permutations (per group, shape ``(clients, size)``) mixed with the barycentre."""
        return self.ascend(problem, SoftClients(problem, permutations, softness, self.coarse))

    def ascend(self, problem: MatchingProblem, soft: SoftClients) -> Matching:
        """Go on from soft maps, which are changed."""
        objective = soft.objective()
        iterations = [Iteration("block-frank-wolfe", objective)]
        with ThreadPoolExecutor() as executor:
            for _ in range(self.max_passes):
                steps = [soft.step(client, executor) for client in range(problem.clients)]
                soft.refresh()
                before, objective = objective, soft.objective()
                iterations.append(Iteration("block-frank-wolfe", objective, sum(steps) / len(steps)))
                if objective - before <= self.tolerance * abs(objective):
                    break
            return Matching(soft.rounded(executor), tuple(iterations))


class SoftClients:
    """The clients under soft maps, and their weighted sum.

    ``tables[b][m]`` is block b of all clients, mapped along the axes whose bits are set in m: ``tables[b][0]`` is their
    own data, ``tables[b][-1]`` their images in the universe.

    Parameters
    ----------
    problem
        The clients.
    permutations
        Where to start, per group of shape ``(clients, size)``.
    softness
        Share of the barycentre, the doubly stochastic matrix of equal entries, in the maps at the start.
    coarse
        Take the gradients' products in bfloat16 where that is faster.
    """

    def __init__(
        self, problem: MatchingProblem, permutations: Sequence[Tensor], softness: float = 0.0, coarse: bool = False
    ) -> None:
        self.problem = problem
        self.dtypes = problem.product_dtypes(coarse)
        self.tables: list[list[Tensor]] = []
        for block in problem.blocks:
            tables = [block.data] * (1 << block.order)
            for axis in range(block.order):
                for kept in range(len(tables)):
                    if not kept >> axis & 1:
                        image = gather(tables[kept], [axis], block.groups, permutations)
                        if softness:
                            image.lerp_(tables[kept].mean(axis + 1, keepdim=True).expand_as(image), softness)
                        tables[kept | 1 << axis] = image
            self.tables.append(tables)
        self.maps = []
        for orders, size in zip(permutations, problem.group_sizes, strict=True):
            maps = torch.full((problem.clients, size, size), softness / size, dtype=problem.dtype)
            maps.scatter_add_(
                2, orders[..., None], torch.full_like(orders, 1.0 - softness, dtype=maps.dtype)[..., None]
            )
            self.maps.append(maps)
        self.sums: list[Tensor] = []
        self.refresh()

    def rounded(self, executor: ThreadPoolExecutor) -> list[Tensor]:
        """The permutations nearest to the soft maps, per group of shape ``(clients, size)``."""
        return [torch.stack(list(executor.map(assign, maps))) for maps in self.maps]

    def refresh(self) -> None:
        """Sum the clients anew, which removes the rounding errors of the steps' updates."""
        self.sums = [weighted_sum(tables[-1], self.problem.weights) for tables in self.tables]

    def objective(self) -> float:
        """The soft objective; only right after `refresh`."""
        images = [tables[-1] for tables in self.tables]
        return self.problem.constant + pair_sum(images, self.sums, self.problem.weights)

    def step(self, client: int, executor: ThreadPoolExecutor) -> float:
        """Move one client to the best point between its soft maps and the vertex of its gradient; return the step."""
        weight = self.problem.weights[client]
        others = [
            torch.sub(total, tables[-1][client], alpha=weight)
            for total, tables in zip(self.sums, self.tables, strict=True)
        ]
        shares, vertex = self._vertex(client, others, executor)
        orders = [order.to(self.problem.device) for order in vertex]
        step = maximise_on_unit_interval(self._search(client, others, shares, orders))
        if step > 0.0:
            self._move(client, orders, step)
            for number, rest in enumerate(others):
                self.sums[number] = rest.add_(self.tables[number][-1][client], alpha=weight)
            for maps, order in zip(self.maps, vertex, strict=True):
                maps[client].mul_(1.0 - step)
                maps[client][torch.arange(len(order)), order] += step
        return step

    def _vertex(
        self, client: int, others: list[Tensor], executor: ThreadPoolExecutor
    ) -> tuple[dict[tuple[int, int], Tensor], list[Tensor]]:
        """Each block's share of the gradient by axis, and per group the assignment that maximises the gradient."""
        shares: dict[tuple[int, int], Tensor] = {}
        pending = []
        for group in range(len(self.problem.group_sizes)):
            own = []
            for number, block in enumerate(self.problem.blocks):
                for axis in block.axes_of(group):
                    image = self.tables[number][len(self.tables[number]) - 1 ^ 1 << axis][client]
                    shares[number, axis] = contract(others[number][None], image[None], axis, self.dtypes[group])[0]
                    own.append(shares[number, axis])
            gradient = sum(own[1:], own[0]).cpu()
            # A thread costs more than a small assignment.
            small = len(gradient) < _THREADED_SIZE
            pending.append(partial(assign, gradient) if small else executor.submit(assign, gradient).result)
        return shares, [result() for result in pending]

    def _search(
        self, client: int, others: list[Tensor], shares: dict[tuple[int, int], Tensor], orders: list[Tensor]
    ) -> Polynomial:
        """The part of the objective that the client's step changes, over 2 w_p, as a polynomial in the step size."""
        values: list[Tensor] = []
        for number, block in enumerate(self.problem.blocks):
            tables = self.tables[number]
            for moved in range(len(tables)):
                axes = [axis for axis in range(block.order) if moved >> axis & 1]
                if len(axes) == 1:  # the gradient's share already holds these inner products
                    order = orders[block.groups[axes[0]]]
                    chosen = shares[number, axes[0]].gather(1, order[:, None])
                    values.append(chosen.sum(dtype=torch.float64))
                    continue
                image = tables[len(tables) - 1 ^ moved][client]
                for axis in axes:
                    image = image.index_select(axis, orders[block.groups[axis]])
                values.append(inner(image, others[number]))
        found = iter(on_host(values))
        totals: dict[int, list[float]] = {}
        for block in self.problem.blocks:
            ways = 1 << block.order
            before = totals.get(block.order, [0.0] * ways)
            totals[block.order] = [a + b for a, b in zip(before, islice(found, ways), strict=True)]
        return sum(map(along_step, totals.values()), Polynomial([0.0]))

    def _move(self, client: int, orders: list[Tensor], step: float) -> None:
        # Axis by axis: with (1 - step) P + step * vertex along one axis after the other, the products come by themselves.
        for number, block in enumerate(self.problem.blocks):
            tables = self.tables[number]
            for axis, group in enumerate(block.groups):
                for kept in range(len(tables)):
                    if not kept >> axis & 1:
                        vertex = tables[kept][client].index_select(axis, orders[group])
                        tables[kept | 1 << axis][client].lerp_(vertex, step)


_THREADED_SIZE = 128
