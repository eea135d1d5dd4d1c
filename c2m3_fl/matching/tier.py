r"""The clients' blocks of one order under soft maps, in buffers that hold all of these blocks side by side.

The vertex of a Frank-Wolfe step is a hard permutation, so a soft map :math:`P' = (1-\alpha) P + \alpha \Pi` changes every
mapped block by gathers alone. Per subset of a block's axes we keep the block mapped along that subset only; the full
subset is the image in the universe, and the subsets that leave out one axis are what the gradient contracts. What is done
to every entry alike (sums, inner products, steps) is one operation for all blocks: on small networks, and on a GPU, an
operation takes as long to call as to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from c2m3_fl.matching.problem import STRETCH, MatchingProblem, multiply, total


@dataclass(frozen=True)
class Cells:
    """One matrix per group, ``(size, size)``, all in one buffer.

    Attributes
    ----------
    sizes
        Of the groups.
    starts
        Of each group's matrix.
    total
        Length of the buffer, a multiple of `STRETCH`.
    """

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, sizes: tuple[int, ...]) -> Cells:
        """Lay the matrices out one after the other."""
        ends = [0]
        for size in sizes:
            ends.append(ends[-1] + size * size)
        return cls(sizes, tuple(ends[:-1]), _padded(ends[-1]))

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Each group's matrix in a buffer of shape ``(..., total)``."""
        return [
            buffer[..., start : start + size * size].view(*buffer.shape[:-1], size, size)
            for start, size in zip(self.starts, self.sizes, strict=True)
        ]

    def rows(self) -> Tensor:
        """Where each row of each matrix begins, one after the other: LongTensor of shape ``(sum of sizes,)``."""
        return torch.cat(
            [start + size * torch.arange(size) for start, size in zip(self.starts, self.sizes, strict=True)]
        )


class Operand:
    """A block's slices along one axis as the rows of a matrix, copied only where they do not lie so in memory.

    Parameters
    ----------
    data
        Shape ``(*group sizes, rest)``.
    axis
        Along which to slice.
    dtype
        In which to multiply.
    scratch
        Flat, of that type, for the copy.
    """

    def __init__(self, data: Tensor, axis: int, dtype: torch.dtype, scratch: Tensor) -> None:
        moved = data.movedim(axis, 0)
        rows = moved.flatten(1)
        self._copied = dtype != data.dtype or rows.data_ptr() != data.data_ptr()
        if self._copied:
            self._source, self._target = moved, scratch[: moved.numel()].view(moved.shape)
            rows = self._target.flatten(1)
        self._rows, self._columns = rows, rows.T

    def rows(self) -> Tensor:
        """The matrix, shape ``(size, entries)``; valid until another operand uses the scratch."""
        self._fill()
        return self._rows

    def columns(self) -> Tensor:
        """Its transpose."""
        self._fill()
        return self._columns

    def _fill(self) -> None:
        if self._copied:
            self._target.copy_(self._source)


class Tier:
    """All blocks of one order.

    Parameters
    ----------
    problem
        The clients.
    order
        Number of the blocks' permuted axes.
    dtypes
        Per group, in which to multiply.
    """

    def __init__(self, problem: MatchingProblem, order: int, dtypes: Sequence[torch.dtype]) -> None:
        self.order, self.full = order, (1 << order) - 1
        self._weights = problem.weights
        self._blocks = [block for block in problem.blocks if block.order == order]
        self._shapes = [tuple(block.data.shape[1:]) for block in self._blocks]
        self._length = _padded(sum(map(math.prod, self._shapes)))

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=problem.dtype, device=problem.device)

        self._images = [empty(problem.clients, self._length) for _ in range(self.full)]  # by subset, less the empty one
        self._tables = [[block.data for block in self._blocks], *map(self._views, self._images)]
        self._table_rows = [list(image) for image in self._images]
        self._client_tables = [
            [[t[client] for t in tables] for tables in self._tables] for client in range(problem.clients)
        ]
        self._sums, self._others, self._scratch = (empty(self._length) for _ in range(3))
        self._stretches = self._scratch.view(-1, STRETCH)
        self._stages = [empty(self._length) for _ in range(order)]
        self._stage_views = [self._views(stage) for stage in self._stages]
        self._stage_parts = [torch.split(stage, _PART) for stage in self._stages]
        self._others_parts = torch.split(self._others, _PART)
        self.cells = Cells.of(problem.group_sizes)
        self.gradient = empty(self.cells.total)
        self._products = list(self._prepared(problem, dtypes))

    def _views(self, buffer: Tensor) -> list[Tensor]:
        """The blocks in a buffer of shape ``(..., length)``."""
        found, start = [], 0
        for shape in self._shapes:
            found.append(buffer[..., start : start + math.prod(shape)].view(*buffer.shape[:-1], *shape))
            start += math.prod(shape)
        return found

    def _prepared(
        self, problem: MatchingProblem, dtypes: Sequence[torch.dtype]
    ) -> Iterator[tuple[Tensor, Operand, list[Operand]]]:
        """Per block and axis: where its share of the gradient goes, the others' slices, and each client's."""
        size = max(map(math.prod, self._shapes))
        scratch = {
            dtype: [torch.empty(size, dtype=dtype, device=problem.device) for _ in range(2)] for dtype in set(dtypes)
        }
        matrices = self.cells.views(self.gradient)
        for number, (block, others) in enumerate(zip(self._blocks, self._views(self._others), strict=True)):
            for axis, group in enumerate(block.groups):
                left, right = scratch[dtypes[group]]
                images = [tables[self.full ^ 1 << axis][number] for tables in self._client_tables]
                yield (
                    matrices[group],
                    Operand(others, axis, dtypes[group], left),
                    [Operand(image, axis, dtypes[group], right) for image in images],
                )

    def start(self, vertices: Sequence[Sequence[Tensor]], softness: float) -> None:
        """Map each client by permutations (per client and group, shape ``(size,)``) mixed with the barycentre."""
        for axis in range(self.order):
            for kept in self._without(axis):
                target = kept | 1 << axis
                for orders, tables in zip(vertices, self._client_tables, strict=True):
                    self._reorder(tables[kept], axis, orders, tables[target])
                if softness:
                    for source, image in zip(self._tables[kept], self._tables[target], strict=True):
                        image.lerp_(source.mean(axis + 1, keepdim=True).expand_as(image), softness)
        self.refresh()

    def refresh(self) -> None:
        """Sum the clients anew, which removes the rounding errors of the steps' updates."""
        first, *rest = self._table_rows[-1]
        torch.mul(first, self._weights[0], out=self._sums)
        for image, weight in zip(rest, self._weights[1:], strict=True):
            self._sums.add_(image, alpha=weight)

    def squares(self) -> list[Tensor]:
        """Squared norms of the sum and of each client, scalars."""
        found = []
        for each in (self._sums, *self._table_rows[-1]):
            torch.mul(each, each, out=self._scratch)
            found.append(self._stretches.sum(1).sum(dtype=torch.float64))
        return found

    def leave(self, client: int) -> None:
        """Take a client out of the sum: what is left are the others, and the gradient of its maps."""
        torch.sub(self._sums, self._table_rows[-1][client], alpha=self._weights[client], out=self._others)
        self.gradient.zero_()
        for share, others, images in self._products:
            multiply(others.rows(), images[client].columns(), share)

    def join(self, client: int) -> None:
        """Put a client that has left, and moved, back into the sum."""
        torch.add(self._others, self._table_rows[-1][client], alpha=self._weights[client], out=self._sums)

    def search(self, client: int, maps: Tensor, orders: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
        """The client's inner product with the others along a step, as `along_step` takes it.

        Parameters
        ----------
        client
            Who has left.
        maps
            Its soft maps, laid out as `cells`.
        orders
            Per group, the step's vertex, shape ``(size,)``.
        positions
            The vertex's entries in `cells`.

        Returns
        -------
        list of Tensor
            Entry j: the sum over the ways to put exactly j axes to the vertex; scalars.
        """
        # The gradient contracted with the maps, or with the vertex, is the image itself, once for every axis.
        sums = [total(self.gradient * maps) / self.order, self.gradient[positions].sum(dtype=torch.float64)]
        for count in range(2, self.order + 1):
            ways = [moved for moved in range(self.full + 1) if moved.bit_count() == count]
            found = [each for moved in ways for each in self._to_vertex(client, moved, orders)]
            sums.append(torch.stack(found).sum(dtype=torch.float64))
        return sums

    def _to_vertex(self, client: int, moved: int, orders: Sequence[Tensor]) -> list[Tensor]:
        """The inner product of others and client, these axes at the vertex: scalars that add up to it."""
        tables, stage = self._client_tables[client][self.full ^ moved], 0
        for axis in reversed(range(self.order)):
            if moved >> axis & 1:
                self._reorder(tables, axis, orders, self._stage_views[axis])
                tables, stage = self._stage_views[axis], axis
        # A dot product reads what it must and writes nothing; in short parts it is precise enough.
        return list(map(torch.dot, self._stage_parts[stage], self._others_parts))

    def _reorder(self, tables: Sequence[Tensor], axis: int, orders: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        for block, table, target in zip(self._blocks, tables, out, strict=True):
            torch.index_select(table, axis, orders[block.groups[axis]], out=target)

    def move(self, client: int, orders: Sequence[Tensor], step: float) -> None:
        """Make the step; only after `search` along the same vertex.

        Axis by axis: with (1 - step) P + step * vertex along one axis after the other, the products come by themselves.
        """
        for axis in range(self.order):
            for kept in self._without(axis):
                # The last thing that `search` did began with the clients' own data along the last axis.
                ready = kept == 0 and axis == self.order - 1 and self.order > 1
                if not ready:
                    self._reorder(self._client_tables[client][kept], axis, orders, self._stage_views[0])
                vertex = self._stages[axis if ready else 0]
                self._table_rows[(kept | 1 << axis) - 1][client].lerp_(vertex, step)

    def _without(self, axis: int) -> Iterator[int]:
        return (kept for kept in range(self.full + 1) if not kept >> axis & 1)


_PART = 1 << 15  # entries of a dot product


def _padded(length: int) -> int:
    return -(-length // STRETCH) * STRETCH
