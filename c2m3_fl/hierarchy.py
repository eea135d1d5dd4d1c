"""Alignment in bounded memory: groups of clients into group universes, then those into one.

A matcher holds several copies of all the clients that it aligns. Here it never sees more than a group of them; the
groups' averages are clients of the next level, weighted by all whom they stand for, until one universe is left. The
maps of the levels are composed, so any cycle of clients is still exactly the identity. What it costs is that clients of
different groups are only compared through their groups' averages; sweeps of coordinate ascent at the end, one client
mapped at a time beside the sum of all, recover most of that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from c2m3_fl.alignment import Alignment, MappedClients, align_clients
from c2m3_fl.averaging import average_clients
from c2m3_fl.device import resolve_device
from c2m3_fl.errors import OptionError
from c2m3_fl.layout import StateDict
from c2m3_fl.matching import (
    BlockFrankWolfe,
    CoordinateAscent,
    FrankWolfe,
    IdentityFirst,
    Iteration,
    Matcher,
    MatchingProblem,
    MergeMany,
    UniverseMatcher,
    resolve_matcher,
)
from c2m3_fl.matching.problem import as_client_maps
from c2m3_fl.matching.universe import Universe
from c2m3_fl.round import Clients
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
    started = time.perf_counter()
    found = _align_levels(clients, spec, matcher, device, group_size)
    if len(clients) <= group_size or not found.moved or not _by_parameters(matcher):
        return found
    maps = list(found.permutations)
    iterations = sweeps(clients, spec, maps, device, found.objective)
    return replace(
        found,
        permutations=tuple(maps),
        objective=_objective(clients, spec, maps),
        iterations=found.iterations + iterations,
        seconds=time.perf_counter() - started,
    )


def sweeps(
    clients: Clients,
    spec: PermutationSpec,
    maps: list[dict[str, Tensor]],
    device: torch.device,
    objective: float,
    *,
    most: int = 3,
) -> tuple[Iteration, ...]:
    """Coordinate ascent over all clients, of which only one is mapped at a time, beside their sum.

    Parameters
    ----------
    clients, spec, device
        The clients, and where to multiply.
    maps
        Their maps, which are changed.
    objective
        At the maps.
    most
        Upper bound on the number of sweeps; they end with one in which nothing moves.

    Returns
    -------
    tuple of Iteration
        The objective at the start and after each sweep, by the moves' gains.
    """
    scale = sum(weight > 0 for weight in clients.weights) / sum(clients.weights)
    names = [name for name in spec.tensors if name not in spec.carried]

    def mapped(client: int) -> dict[str, Tensor]:
        image = spec.apply(clients.state_dicts[client], maps[client])
        return {name: image[name].to(device, torch.promote_types(image[name].dtype, torch.float32)) for name in names}

    total = {name: tensor.mul_(clients.weights[0] * scale) for name, tensor in mapped(0).items()}
    for client in range(1, len(maps)):
        for name, tensor in mapped(client).items():
            total[name].add_(tensor, alpha=clients.weights[client] * scale)
    iterations = [Iteration("sweep", objective)]
    for _ in range(most):
        moves = 0
        for client in range(len(maps)):
            weight, image = clients.weights[client] * scale, mapped(client)
            for name, tensor in image.items():
                total[name].sub_(tensor, alpha=weight)
            problem = MatchingProblem.build([total, image], spec, [1.0, 1.0], device)
            universe = Universe(problem, problem.identity(), CoordinateAscent.tolerance)
            moves += universe.settle(1)
            _, found = as_client_maps(problem.group_names, universe.permutations, 2)
            maps[client] = compose(maps[client], found)
            objective += weight * universe.gained
            for name, tensor in mapped(client).items():
                total[name].add_(tensor, alpha=weight)
        iterations.append(Iteration("sweep", objective))
        if not moves:
            break
    return tuple(iterations)


def _by_parameters(matcher: Matcher) -> bool:
    """Whether a matcher maximises the objective of the parameters, so that going on with it is what was asked for."""
    inner = matcher.matcher if isinstance(matcher, IdentityFirst) else matcher
    return isinstance(inner, UniverseMatcher | FrankWolfe | BlockFrankWolfe | CoordinateAscent | MergeMany)


def _align_levels(
    clients: Clients, spec: PermutationSpec, matcher: Matcher, device: torch.device, group_size: int
) -> Alignment:
    """Groups of clients into universes, and these into one."""
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
    above = _align_levels(level, spec, matcher, device, group_size).by_position(level.positions)
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
