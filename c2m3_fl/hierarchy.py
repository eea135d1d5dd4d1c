"""Alignment in bounded memory: groups of clients into group universes, then those into one.

A matcher holds several copies of all the clients that it aligns. Here it never sees more than a group of them; the
groups' averages are clients of the next level, weighted by all whom they stand for, until one universe is left. The
maps of the levels are composed, so any cycle of clients is still exactly the identity. What it costs is that clients of
different groups are only compared through their groups' averages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from c2m3_fl.alignment import Alignment, MappedClients, align_clients
from c2m3_fl.averaging import average_clients
from c2m3_fl.device import resolve_device
from c2m3_fl.errors import OptionError
from c2m3_fl.matching import Iteration, Matcher, resolve_matcher
from c2m3_fl.round import Clients, StateDict
from c2m3_fl.symmetry import PermutationSpec
from c2m3_fl.symmetry.spec import compose


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
    OptionError
        If the group size is below 2; and as `c2m3_fl.align`.
    """
    if group_size < 2:
        raise OptionError(f"group_size is {group_size}; a group has at least 2 clients")
    clients = Clients.of(state_dicts, weights)
    solver, place = resolve_matcher(matcher), resolve_device(device)
    return align_grouped(clients, spec, solver, place, group_size).by_position(clients.positions)


def align_grouped(
    clients: Clients, spec: PermutationSpec, matcher: Matcher, device: torch.device, group_size: int
) -> Alignment:
    """The same for clients that are checked and in order."""
    if len(clients) <= group_size:
        return align_clients(clients, spec, matcher, device)
    started = time.perf_counter()
    still = clients.alike.difference(spec.moved_tensors())
    maps: list[dict[str, Tensor]] = []
    universes: list[StateDict] = []
    shares: list[float] = []
    iterations: tuple[Iteration, ...] = ()
    groups = list(_groups(range(len(clients)), group_size))
    for group in groups:
        members = clients.subset(group)
        shares.append(sum(clients.weights[client] for client in group))
        if shares[-1] == 0:  # a group of zero weights must be mapped like any other, and count for nothing above
            members = members.weighted([1.0] * len(members))
        alignment = align_clients(members, spec, matcher, device)
        universes.append(average_clients(members, MappedClients(alignment, members.state_dicts), "mean", still))
        iterations += alignment.iterations
        maps += alignment.permutations
    level = Clients.of(universes, shares, clients.layout)
    above = align_grouped(level, spec, matcher, device, group_size).by_position(level.positions)
    for group, permutations in zip(groups, above.permutations, strict=True):
        for client in group:
            maps[client] = compose(maps[client], permutations)
    return Alignment(
        permutations=tuple(maps),
        objective=_objective(clients, spec, maps),
        objective_before=_objective(clients, spec, [{} for _ in maps]),
        iterations=iterations + above.iterations,
        seconds=time.perf_counter() - started,
        spec=spec,
    )


def _groups(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    count = -(-len(order) // size)
    for number in range(count):
        yield order[number * len(order) // count : (number + 1) * len(order) // count]


def _objective(clients: Clients, spec: PermutationSpec, permutations: Sequence[Mapping[str, Tensor]]) -> float:
    """Eq. 4 by one pass over the clients, in float64; weights of mean one over those that count, as in `align`."""
    counted = [client for client, weight in enumerate(clients.weights) if weight > 0]
    scale = len(counted) / sum(clients.weights)
    names = [name for name in spec.tensors if name not in spec.carried]
    sums: dict[str, Tensor] = {}
    own = 0.0
    for client in counted:
        mapped = spec.apply(clients.state_dicts[client], permutations[client])
        for name in names:
            part = mapped[name].double() * (clients.weights[client] * scale)
            own += float(part.square().sum())
            sums[name] = sums[name].add_(part) if name in sums else part
    return sum(float(total.square().sum()) for total in sums.values()) - own
