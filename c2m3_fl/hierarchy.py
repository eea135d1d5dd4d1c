"""Alignment in bounded memory: groups of clients into group universes, then those into one.

A matcher holds several copies of all the clients that it aligns. Here it never sees more than a group of them; the
groups' averages are clients of the next level, weighted by all whom they stand for, until one universe is left. The
maps of the levels are composed, so any cycle of clients is still exactly the identity. What it costs is that clients of
different groups are only compared through their groups' averages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import torch
from torch import Tensor

from c2m3_fl.alignment import Alignment, align
from c2m3_fl.averaging import average
from c2m3_fl.matching import Iteration, Matcher
from c2m3_fl.symmetry import PermutationSpec
from c2m3_fl.symmetry.spec import compose
from c2m3_fl.validation import canonical_order, check_clients

StateDict = Mapping[str, Tensor]


class MappedClients(Sequence[dict[str, Tensor]]):
    """Clients in the universe, each mapped when it is asked for: one copy at a time, where `Alignment.apply` makes n."""

    def __init__(self, alignment: Alignment, state_dicts: Sequence[StateDict]) -> None:
        self._alignment = alignment
        self._state_dicts = state_dicts

    def __len__(self) -> int:
        return len(self._state_dicts)

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._alignment.spec.apply(self._state_dicts[index], self._alignment.permutations[index])


def align_in_groups(
    state_dicts: Sequence[StateDict],
    spec: PermutationSpec,
    *,
    group_size: int,
    weights: Sequence[float] | None = None,
    matcher: str | Matcher = "default",
    device: str | torch.device = "auto",
) -> Alignment:
    """Find permutations of all clients into one universe, never holding more than a group of them at once.

    Parameters
    ----------
    state_dicts
        The clients' tensors.
    spec
        The network's permutation groups.
    group_size
        Most clients in a group, at least 2. Groups are drawn by the clients' content and are as equal as can be.
    weights, matcher, device
        See `c2m3_fl.align`.

    Returns
    -------
    Alignment
        The same to the bit for the same clients in any order. Its iterations are those of all levels, in order.

    Raises
    ------
    ValueError
        If the group size is below 2; and as `c2m3_fl.align`.
    """
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}; a group has at least 2 clients")
    checked = check_clients(state_dicts, weights)
    if len(state_dicts) <= group_size:
        return align(state_dicts, spec, weights=checked, matcher=matcher, device=device)
    started = time.perf_counter()
    maps: list[dict[str, Tensor]] = [{} for _ in state_dicts]
    universes: list[StateDict] = []
    shares: list[float] = []
    iterations: tuple[Iteration, ...] = ()
    groups = [group for group in _groups(canonical_order(state_dicts, checked), group_size) if group]
    for group in groups:
        members = [state_dicts[client] for client in group]
        own = [checked[client] for client in group]
        # a group of zero weights must be mapped like any other, and count for nothing above
        alignment = align(members, spec, weights=own if sum(own) > 0 else None, matcher=matcher, device=device)
        universes.append(average(MappedClients(alignment, members), own if sum(own) > 0 else None))
        shares.append(sum(own))
        iterations += alignment.iterations
        for client, permutations in zip(group, alignment.permutations, strict=True):
            maps[client] = permutations
    above = align_in_groups(universes, spec, group_size=group_size, weights=shares, matcher=matcher, device=device)
    for group, permutations in zip(groups, above.permutations, strict=True):
        for client in group:
            maps[client] = compose(maps[client], permutations)
    identity = tuple(spec.identity() for _ in maps)
    return Alignment(
        permutations=tuple(maps),
        objective=_objective(state_dicts, spec, tuple(maps), checked),
        objective_before=_objective(state_dicts, spec, identity, checked),
        iterations=iterations + above.iterations,
        seconds=time.perf_counter() - started,
        spec=spec,
    )


def _groups(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    count = -(-len(order) // size)
    for number in range(count):
        yield order[number * len(order) // count : (number + 1) * len(order) // count]


def _objective(
    state_dicts: Sequence[StateDict],
    spec: PermutationSpec,
    permutations: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
) -> float:
    """Eq. 4 by one pass over the clients, in float64; weights of mean one over those that count, as in `align`."""
    counted = [client for client, weight in enumerate(weights) if weight > 0]
    scale = len(counted) / sum(weights)
    names = [name for name in spec.tensors if name not in spec.carried]
    sums: dict[str, Tensor] = {}
    own = 0.0
    for client in counted:
        mapped = spec.apply(state_dicts[client], permutations[client])
        for name in names:
            part = mapped[name].double() * (weights[client] * scale)
            own += float(part.square().sum())
            sums[name] = sums[name].add_(part) if name in sums else part
    return sum(float(total.square().sum()) for total in sums.values()) - own
