r"""The n-model matching problem (C2M3, Eq. 4) in a form that is linear in the number of clients.

With :math:`X_p` client p's tensors mapped to the universe and :math:`w_p` its weight,

.. math:: f = \sum_{p \ne q} w_p w_q \langle X_p, X_q \rangle = \|S\|^2 - \sum_p \|w_p X_p\|^2, \qquad S = \sum_p w_p X_p,

so one sum over clients stands in for the paper's sum over pairs.

Every tensor is cut into *blocks*: along each axis of a block one group acts, and all that no group moves is flattened
into the last axis. Blocks with the same groups are joined there, so that a group's bias, its norm's affine parameters and
its fixed-input weights are one block and cost one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate, product
from typing import cast

import torch
from torch import Tensor

from c2m3_fl.device import coarse_dtype
from c2m3_fl.symmetry import Axis, PermutationSpec, Segment, SpecError


@dataclass(frozen=True)
class Block:
    """Pieces of the clients' tensors on which the same groups act.

    Attributes
    ----------
    groups
        Index of the group that acts on each axis but the first and the last, in ascending order. A group may act twice.
    data
        Shape ``(clients, *group sizes, rest)``.
    """

    groups: tuple[int, ...]
    data: Tensor

    @property
    def order(self) -> int:
        """Number of permuted axes: the degree of the mapped block as a polynomial in the permutations."""
        return len(self.groups)

    def axes_of(self, group: int) -> Iterator[int]:
        """Positions in `groups` at which `group` acts."""
        return (position for position, other in enumerate(self.groups) if other == group)


@dataclass(frozen=True)
class MatchingProblem:
    """Everything a matcher needs: the clients' blocks and weights on one device.

    Attributes
    ----------
    group_names, group_sizes
        The permutation groups, in the spec's order.
    blocks
        What the groups move.
    weights
        One positive float per client, with mean one.
    constant
        The share of the objective that no permutation can change.
    state_dicts, spec
        What the blocks were cut from. A problem of sums of clients has no state dicts.
    """

    group_names: tuple[str, ...]
    group_sizes: tuple[int, ...]
    blocks: tuple[Block, ...]
    weights: tuple[float, ...]
    constant: float
    device: torch.device
    dtype: torch.dtype
    state_dicts: tuple[Mapping[str, Tensor], ...] = field(repr=False)
    spec: PermutationSpec = field(repr=False)

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.weights)

    def on(self, device: torch.device) -> MatchingProblem:
        """The same problem with its blocks on a device."""
        if device == self.device:
            return self
        return replace(
            self, device=device, blocks=tuple(Block(block.groups, block.data.to(device)) for block in self.blocks)
        )

    def weight_tensor(self, order: int) -> Tensor:
        """Client weights of shape ``(clients, 1, ..., 1)``, to multiply a block with `order` permuted axes."""
        weights = torch.tensor(self.weights, dtype=self.dtype, device=self.device)
        return weights.view(-1, *([1] * (order + 1)))

    def product_dtypes(self, coarse: bool) -> list[torch.dtype]:
        """Per group, in which type to multiply for its gradient.

        With `coarse` that is bfloat16 for large groups, if the device has instructions for it: the products take a quarter
        of the time (512 neurons, AVX-512-BF16), and the inner product of like slices is off by up to 0.4 %.
        """
        fast = coarse_dtype(self.device) if coarse else None
        return [fast if fast and size >= _COARSE_SIZE else self.dtype for size in self.group_sizes]

    def identity(self) -> list[Tensor]:
        """Per group, the identity for every client: LongTensor of shape ``(clients, size)``."""
        return [torch.arange(size).repeat(self.clients, 1) for size in self.group_sizes]

    def mapped(self, permutations: Sequence[Tensor]) -> list[Tensor]:
        """Each block's data with every client mapped by its permutations (per group, shape ``(clients, size)``)."""
        orders = torch.cat(list(permutations), dim=1).to(self.device) if permutations else torch.empty(0)
        placed = torch.split(orders, list(self.group_sizes), dim=1) if permutations else ()
        return [gather(block.data, range(block.order), block.groups, placed) for block in self.blocks]

    def objective(self, permutations: Sequence[Tensor]) -> float:
        """The objective (Eq. 4) at permutations, in float64."""
        return self._objective(self.mapped(permutations))

    @cached_property
    def identity_objective(self) -> float:
        """The objective at the identity, in float64."""
        return self._objective([block.data for block in self.blocks])

    def _objective(self, images: Sequence[Tensor]) -> float:
        """The squared norm of the weighted sum, less the clients' own, which no permutation changes."""
        sums = [weighted_sum(image, self.weights).flatten() for image in images]
        return self.constant + (float(total(torch.cat(sums).square_())) if sums else 0.0) - self._own

    @cached_property
    def _own(self) -> float:
        """The sum of the clients' weighted squared norms."""
        norms = on_host([inner(client, client) for block in self.blocks for client in block.data])
        squares = [weight**2 for weight in self.weights] * len(self.blocks)
        return sum(square * norm for square, norm in zip(squares, norms, strict=True))

    @classmethod
    def build(
        cls,
        state_dicts: Sequence[Mapping[str, Tensor]],
        spec: PermutationSpec,
        weights: Sequence[float],
        device: torch.device,
    ) -> MatchingProblem:
        """Cut the clients' tensors into blocks.

        Parameters
        ----------
        state_dicts
            The clients' tensors, each fitting the spec.
        spec
            Their permutation groups.
        weights
            One positive weight per client; rescaled to mean one.
        device
            Where the blocks will live.

        Raises
        ------
        SpecError
            If a matched tensor is not of floating point.
        """
        index = {name: number for number, name in enumerate(spec.groups)}
        scale = len(weights) / sum(weights)
        normalised = tuple(weight * scale for weight in weights)
        names = [name for name in spec.tensors if name not in spec.carried]
        dtype = _common_dtype(state_dicts[0], names)
        pieces: dict[tuple[int, ...], list[Tensor]] = {}
        constant = 0.0
        for name in names:
            stacked = torch.stack([state_dict[name].detach().to(device, dtype) for state_dict in state_dicts])
            for groups, piece in _pieces(stacked, spec.tensors[name], index):
                if groups:
                    pieces.setdefault(groups, []).append(piece)
                else:
                    constant += pair_sum([piece], [weighted_sum(piece, normalised)], normalised)
        blocks = tuple(Block(groups, torch.cat(data, dim=-1)) for groups, data in sorted(pieces.items()))
        sizes = tuple(spec.groups.values())
        return cls(tuple(spec.groups), sizes, blocks, normalised, constant, device, dtype, tuple(state_dicts), spec)


_COARSE_SIZE = 256  # below it, casting costs more than the products save


def gather(data: Tensor, axes: Sequence[int], groups: Sequence[int], permutations: Sequence[Tensor]) -> Tensor:
    """Reorder a block's axes, each client by its own permutations.

    Parameters
    ----------
    data
        Shape ``(clients, *group sizes, rest)``.
    axes
        Which of the permuted axes to reorder.
    groups
        The group of every permuted axis.
    permutations
        Per group, indices of shape ``(clients, size)``.
    """
    orders = {axis: permutations[groups[axis]].to(data.device) for axis in axes}
    if not orders:
        return data
    if data[0].numel() < _TOGETHER:
        return _gathered_together(data, orders)
    for axis, order in orders.items():
        gathered = torch.empty_like(data)
        for client in range(len(data)):
            torch.index_select(data[client], axis, order[client], out=gathered[client])
        data = gathered
    return data


def _gathered_together(data: Tensor, orders: Mapping[int, Tensor]) -> Tensor:
    """All clients and axes in one operation, by the positions of the rows: less to launch, where there is little to move."""
    clients, *sizes, rest = data.shape
    rows = _steps(clients, data.device)
    for axis, size in enumerate(sizes):
        order = orders[axis] if axis in orders else _steps(size, data.device)[None]
        rows = torch.add(order.view(len(order), *[1] * axis, size), rows[..., None], alpha=size)
    return data.reshape(-1, rest).index_select(0, rows.flatten()).view(data.shape)


@lru_cache(maxsize=256)
def _steps(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)


_TOGETHER = 1 << 16  # entries of a client's block


def contract(left: Tensor, right: Tensor, axis: int, dtype: torch.dtype | None = None) -> Tensor:
    """Inner products over all axes but one, per client.

    Parameters
    ----------
    left, right
        Shape ``(clients, *group sizes, rest)``.
    axis
        The permuted axis to keep.
    dtype
        In which to multiply, if not in that of the data.

    Returns
    -------
    Tensor
        Shape ``(clients, size, size)``: entry ``(p, i, j)`` is the inner product of ``left``'s slice i with ``right``'s
        slice j.
    """

    def matrix(data: Tensor) -> Tensor:
        return data.movedim(axis + 1, 1).flatten(2).to(dtype or data.dtype)

    return torch.bmm(matrix(left), matrix(right).transpose(1, 2)).to(left.dtype)


def multiply(left: Tensor, right: Tensor, total: Tensor) -> None:
    """Add the product of two matrices, taken in their own type, to a third of any type: shape ``(size, size)``."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))


def gains(
    problem: MatchingProblem,
    group: int,
    images: Sequence[Tensor],
    client: int,
    others: Mapping[int, Tensor],
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What a client's neurons of one group are worth at each place, relative to where they are.

    Parameters
    ----------
    problem
        The clients.
    group
        The group.
    images
        Per block the clients where they are, shape ``(clients, *group sizes, rest)``.
    client
        The client.
    others
        Per block that carries the group, the weighted sum of the others, shape ``(*group sizes, rest)``.
    dtype
        In which to multiply, if not in that of the problem.

    Returns
    -------
    Tensor
        Shape ``(size, size)``: entry ``(i, j)`` is the inner product of the others' slice i with the client's slice j.
    """
    size = problem.group_sizes[group]
    total = torch.zeros(size, size, dtype=problem.dtype, device=problem.device)
    for number, block in enumerate(problem.blocks):
        for axis in block.axes_of(group):
            total += contract(others[number][None], images[number][client][None], axis, dtype)[0]
    return total


def weighted_sum(data: Tensor, weights: Sequence[float]) -> Tensor:
    """Sum over clients of weight times data; no copy of the clients is made if they lie side by side in memory."""
    factors = torch.tensor(weights, dtype=data.dtype, device=data.device)
    return torch.mv(data.flatten(1).T, factors).view(data.shape[1:])


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner product, its sums' sum in float64: a scalar on the tensors' device."""
    return total(left * right)


def total(values: Tensor) -> Tensor:
    """Sum of all entries: of short stretches in the tensor's type, of these in float64, which takes a third of the time."""
    flat = values.reshape(-1)
    whole = len(flat) // STRETCH * STRETCH
    found = flat[:whole].view(-1, STRETCH).sum(1).sum(dtype=torch.float64)
    return found if whole == len(flat) else found + flat[whole:].sum(dtype=torch.float64)


STRETCH = 256


def on_host(scalars: Sequence[Tensor]) -> list[float]:
    """Scalars from their device, all in one transfer."""
    return cast("list[float]", torch.stack(list(scalars)).tolist()) if scalars else []


def pair_sum(images: Sequence[Tensor], sums: Sequence[Tensor], weights: Sequence[float]) -> float:
    """Sum over ordered pairs of different clients of weighted inner products.

    Parameters
    ----------
    images
        Per block, shape ``(clients, ...)``.
    sums
        Per block, the weighted sum over clients.
    weights
        One per client.
    """
    norms = on_host([inner(x, x) for x in (*sums, *(client for image in images for client in image))])
    squares = [weight**2 for weight in weights] * len(images)
    own = sum(square * norm for square, norm in zip(squares, norms[len(sums) :], strict=True))
    return sum(norms[: len(sums)]) - own


def as_client_maps(group_names: Sequence[str], permutations: Sequence[Tensor], clients: int) -> list[dict[str, Tensor]]:
    """From per-group tensors of shape ``(clients, size)`` to one mapping of permutations per client."""
    return [
        {name: orders[client].clone() for name, orders in zip(group_names, permutations, strict=True)}
        for client in range(clients)
    ]


def _common_dtype(state_dict: Mapping[str, Tensor], names: Sequence[str]) -> torch.dtype:
    for name in names:
        if not state_dict[name].dtype.is_floating_point:
            raise SpecError(
                f"tensor {name!r} is of {state_dict[name].dtype} and cannot be matched: "
                "list it among the spec's carried tensors"
            )
    double = any(state_dict[name].dtype == torch.float64 for name in names)
    return torch.float64 if double else torch.float32


def _pieces(
    stacked: Tensor, axes: Sequence[Axis], index: Mapping[str, int]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Cut a tensor of shape ``(clients, ...)`` at its segments and give each factor an axis of its own."""
    spans = []
    for axis in axes:
        sizes = [segment.size for segment in axis.segments]
        starts = [0, *accumulate(sizes)]
        spans.append([(segment, slice(a, a + s)) for segment, a, s in zip(axis.segments, starts, sizes, strict=False)])
    for choice in product(*spans):
        piece = stacked[(slice(None), *(span for _, span in choice))]
        yield _by_group(piece, [segment for segment, _ in choice], index)


def _by_group(piece: Tensor, segments: Sequence[Segment], index: Mapping[str, int]) -> tuple[tuple[int, ...], Tensor]:
    factors = [factor for segment in segments for factor in segment.factors]
    shaped = piece.reshape(len(piece), *(factor.size for factor in factors))
    moving = sorted((index[factor.group], dim + 1) for dim, factor in enumerate(factors) if factor.group is not None)
    fixed = [dim + 1 for dim, factor in enumerate(factors) if factor.group is None]
    order = [0, *(dim for _, dim in moving), *fixed]
    shaped = shaped.permute(order).flatten(len(moving) + 1) if fixed else shaped.permute(order)[..., None]
    return tuple(group for group, _ in moving), shaped
