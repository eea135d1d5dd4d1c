r"""Block-coordinate Frank-Wolfe for n-model matching: one client at a time, all of its groups jointly.

Algorithm 1 of C2M3 moves all clients at once towards where the others were. Here each client moves towards where the
others are (block-coordinate Frank-Wolfe, Lacoste-Julien et al. 2013, with the clients as blocks), so two clients cannot
change places for ever. Along the step of one client the objective is a polynomial of degree k, the largest number of
permuted axes of a tensor, a parabola for ordinary layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from c2m3_fl.matching.assignment import solve
from c2m3_fl.matching.line_search import along_step, maximise_on_unit_interval
from c2m3_fl.matching.matcher import Iteration, Matching
from c2m3_fl.matching.problem import MatchingProblem, on_host
from c2m3_fl.matching.tier import Cells, Tier


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
    along each axis, and along both), one matrix per client and group for the soft maps, and the blocks of one client 5
    times over.
    """

    max_passes: int = 10
    tolerance: float = 1e-6
    coarse: bool = False

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem from the identity."""
        return self.ascend(SoftClients(problem, coarse=self.coarse), problem.identity())

    def restart(self, problem: MatchingProblem, permutations: Sequence[Tensor], softness: float) -> Matching:
        """Start from permutations (per group, shape ``(clients, size)``) mixed with the barycentre."""
        return self.ascend(SoftClients(problem, coarse=self.coarse), permutations, softness)

    def ascend(self, soft: SoftClients, permutations: Sequence[Tensor], softness: float = 0.0) -> Matching:
        """The same as `restart`, in buffers that are used again."""
        soft.start(permutations, softness)
        objective = soft.objective()
        iterations = [Iteration("block-frank-wolfe", objective)]
        with ThreadPoolExecutor() as executor:
            for _ in range(self.max_passes):
                steps = [soft.step(client, executor) for client in range(len(soft.maps))]
                soft.refresh()
                before, objective = objective, soft.objective()
                iterations.append(Iteration("block-frank-wolfe", objective, sum(steps) / len(steps)))
                if objective - before <= self.tolerance * abs(objective):
                    break
            return Matching(soft.rounded(executor), tuple(iterations))


class SoftClients:
    """The clients under soft maps, and their weighted sum.

    Parameters
    ----------
    problem
        The clients.
    coarse
        Multiply for gradients in bfloat16 where that is faster.

    Attributes
    ----------
    maps
        Per client the soft maps, laid out as `Cells`: shape ``(clients, entries)``. Only `start` gives them a value.
    """

    def __init__(self, problem: MatchingProblem, *, coarse: bool = False) -> None:
        self.problem = problem
        self.cells = Cells.of(problem.group_sizes)
        self.maps = torch.zeros(problem.clients, self.cells.total, dtype=problem.dtype, device=problem.device)
        dtypes = problem.product_dtypes(coarse)
        self._tiers = [Tier(problem, order, dtypes) for order in sorted({block.order for block in problem.blocks})]
        self._client_maps = list(self.maps)
        self._rows = self.cells.rows().to(problem.device)
        self._ones = torch.ones(len(self._rows), dtype=problem.dtype, device=problem.device)

    def start(self, permutations: Sequence[Tensor], softness: float = 0.0) -> None:
        """Begin at permutations (per group, shape ``(clients, size)``) mixed with the barycentre."""
        orders = torch.cat(list(permutations), dim=1).to(self.problem.device)
        for tier in self._tiers:
            tier.start([torch.split(own, list(self.problem.group_sizes)) for own in orders], softness)
        for matrices in self.cells.views(self.maps):
            matrices.fill_(softness / matrices.shape[-1])
        vertices = orders + self._rows
        self.maps.scatter_add_(1, vertices, torch.full_like(vertices, 1.0 - softness, dtype=self.maps.dtype))

    def rounded(self, executor: ThreadPoolExecutor) -> list[Tensor]:
        """The permutations nearest to the soft maps, per group of shape ``(clients, size)``."""
        found = [_solve_all(self._on_host(own), executor) for own in self.maps.cpu().numpy()]
        return [torch.from_numpy(np.stack(orders)) for orders in zip(*found, strict=True)]

    def refresh(self) -> None:
        """Sum the clients anew, which removes the rounding errors of the steps' updates."""
        for tier in self._tiers:
            tier.refresh()

    def objective(self) -> float:
        """The soft objective; only right after `start` or `refresh`."""
        squares = iter(on_host([square for tier in self._tiers for square in tier.squares()]))
        objective = self.problem.constant
        for _ in self._tiers:
            objective += next(squares)
            objective -= sum(weight**2 * next(squares) for weight in self.problem.weights)
        return objective

    def step(self, client: int, executor: ThreadPoolExecutor) -> float:
        """Move one client to the best point between its soft maps and the vertex of its gradient; return the step."""
        for tier in self._tiers:
            tier.leave(client)
        vertex, maps = self.vertex(executor), self._client_maps[client]
        positions = vertex + self._rows
        orders = torch.split(vertex, list(self.problem.group_sizes))
        searches = [tier.search(client, maps, orders, positions) for tier in self._tiers]
        sums = iter(on_host([each for search in searches for each in search]))
        # The objective's change, over 2 w_p.
        along = [along_step([next(sums) for _ in search]) for search in searches]
        step = maximise_on_unit_interval(sum(along[1:], along[0]))
        if step > 0.0:
            for tier in self._tiers:
                tier.move(client, orders, step)
                tier.join(client)
            maps.mul_(1.0 - step).index_add_(0, positions, self._ones, alpha=step)
        return step

    def vertex(self, executor: ThreadPoolExecutor) -> Tensor:
        """The assignments that maximise the gradient of the client that has left, one after the other.

        Returns
        -------
        Tensor
            LongTensor of shape ``(sum of group sizes,)``; one transfer from the device, and one to it.
        """
        gradient = self._tiers[0].gradient
        for tier in self._tiers[1:]:
            gradient = gradient + tier.gradient
        found = _solve_all(self._on_host(gradient.cpu().numpy()), executor)
        return torch.from_numpy(np.concatenate(found)).to(self.problem.device)

    def _on_host(self, buffer: NDArray[np.floating]) -> list[NDArray[np.floating]]:
        return [
            buffer[start : start + size * size].reshape(size, size)
            for start, size in zip(self.cells.starts, self.cells.sizes, strict=True)
        ]


def _solve_all(matrices: Sequence[NDArray[np.floating]], executor: ThreadPoolExecutor) -> list[NDArray[np.int64]]:
    """One assignment a matrix, the large ones on threads: a thread costs more than a small one."""
    pending: list[Future[NDArray[np.int64]] | None] = [
        executor.submit(solve, matrix) if len(matrix) >= _THREADED_SIZE else None for matrix in matrices
    ]
    return [
        solve(matrix) if future is None else future.result() for matrix, future in zip(matrices, pending, strict=True)
    ]


_THREADED_SIZE = 128
