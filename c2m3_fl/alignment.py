"""Alignment: every client's permutations into the universe."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from c2m3_fl.averaging import average_clients
from c2m3_fl.device import resolve_device
from c2m3_fl.layout import StateDict
from c2m3_fl.matching import Identity, Iteration, Matcher, resolve_matcher
from c2m3_fl.matching.matcher import objective_of
from c2m3_fl.matching.problem import MatchingProblem, as_client_maps
from c2m3_fl.round import Clients
from c2m3_fl.symmetry import PermutationSpec, compose, invert


@dataclass(frozen=True)
class Alignment:
    """Cycle-consistent permutations of n clients into one universe.

    Attributes
    ----------
    permutations
        Per client, for each group the LongTensor of indices that maps the client to the universe, in the sense of
        `PermutationSpec.apply`.
    objective
        The hard objective (C2M3, Eq. 4): the weighted inner products of the mapped clients, summed over ordered pairs of
        different clients, in float64. Weights are rescaled so that equal ones count as one.
    objective_before
        The same for the clients as they came.
    iterations
        What the matcher did.
    seconds
        Wall time of the matching.
    spec
        The permutation groups.
    """

    permutations: tuple[dict[str, Tensor], ...]
    objective: float
    objective_before: float
    iterations: tuple[Iteration, ...]
    seconds: float
    spec: PermutationSpec

    @property
    def history(self) -> tuple[float, ...]:
        """The objective at the matcher's start and after each of its iterations (soft while Frank-Wolfe runs)."""
        return tuple(iteration.objective for iteration in self.iterations)

    @property
    def moved(self) -> float:
        """Fraction of the clients' neurons that the map to the universe puts elsewhere."""
        moved = sum(
            int((order != torch.arange(len(order))).sum()) for maps in self.permutations for order in maps.values()
        )
        total = sum(len(order) for maps in self.permutations for order in maps.values())
        return moved / total if total else 0.0

    def apply(self, state_dicts: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Map the clients to the universe.

        Parameters
        ----------
        state_dicts
            The clients' tensors, in the order in which they were aligned.

        Raises
        ------
        ValueError
            If their number is not that of the aligned clients.
        """
        return [
            self.spec.apply(state_dict, maps) for state_dict, maps in zip(state_dicts, self.permutations, strict=True)
        ]

    def by_position(self, positions: Sequence[int]) -> Alignment:
        """The alignment with the clients in the caller's order; `positions` tells of each client where it is there."""
        order = sorted(range(len(positions)), key=positions.__getitem__)
        return replace(self, permutations=tuple(self.permutations[client] for client in order))

    def pairwise(self, p: int, q: int) -> dict[str, Tensor]:
        """The map from client q to client p, through the universe.

        Composed around any cycle of clients, these maps are exactly the identity (C2M3, Theorem 3.1).
        """
        return compose(self.permutations[q], invert(self.permutations[p]))


def align(
    state_dicts: Sequence[Mapping[str, Tensor]],
    spec: PermutationSpec,
    *,
    weights: Sequence[float] | None = None,
    matcher: str | Matcher = "default",
    device: str | torch.device = "auto",
) -> Alignment:
    """Find permutations of all clients into one universe.

    Parameters
    ----------
    state_dicts
        The clients' tensors: equal names, shapes and dtypes, finite.
    spec
        The network's permutation groups.
    weights
        One non-negative weight per client, for example its number of examples; None for equal weights. Only their ratios
        matter. A client of weight zero is mapped to the universe of the others and does not change it.
    matcher
        ``"default"``, ``"frank-wolfe"`` (the paper's Algorithm 1), another name in `c2m3_fl.matching.MATCHERS`,
        ``"identity"`` for none, or a `Matcher`, such as a `c2m3_fl.matching.ActivationMatcher`.
    device
        ``"auto"`` (CUDA where present) or a torch device for the matrix products; assignments are solved on CPU threads.

    Returns
    -------
    Alignment
        The same to the bit for the same clients in any order.

    Raises
    ------
    ClientError
        Naming the client that cannot be merged, or whose weight is unusable.
    SpecError
        If the spec does not fit the clients.
    ValueError
        If there is no such matcher or device.
    """
    clients = Clients.of(state_dicts, weights)
    solver, place = resolve_matcher(matcher), resolve_device(device)
    return align_clients(clients, spec, solver, place).by_position(clients.positions)


def align_clients(clients: Clients, spec: PermutationSpec, matcher: Matcher, device: torch.device) -> Alignment:
    """The same for clients that are checked and in order.

    Raises
    ------
    SpecError
        If the spec does not fit the clients.
    """
    spec.check(clients.state_dicts[0])
    started = time.perf_counter()
    counting = [client for client, weight in enumerate(clients.weights) if weight > 0]
    problem = MatchingProblem.build(
        [clients.state_dicts[client] for client in counting],
        spec,
        [clients.weights[client] for client in counting],
        device,
    )
    # One client is its own universe; without groups there is nothing to find.
    matching = (matcher if len(counting) > 1 and problem.blocks else Identity()).match(problem)
    found = as_client_maps(problem.group_names, matching.permutations, len(counting))
    maps: dict[int, dict[str, Tensor]] = dict(zip(counting, found, strict=True))
    objective, objective_before = objective_of(problem, matching), problem.identity_objective
    if len(counting) < len(clients):
        counted = clients.subset(counting)
        images = [spec.apply(clients.state_dicts[client], maps[client]) for client in counting]
        universe = average_clients(counted, images, "mean", clients.alike.difference(spec.moved_tensors()))
        for client in range(len(clients)):
            if client not in maps:
                maps[client] = _map_to(universe, clients.state_dicts[client], spec, matcher, device)
    return Alignment(
        permutations=tuple(maps[client] for client in range(len(clients))),
        objective=objective,
        objective_before=objective_before,
        iterations=matching.iterations,
        seconds=time.perf_counter() - started,
        spec=spec,
    )


class MappedClients(Sequence[StateDict]):
    """Clients in the universe, each mapped when it is asked for: one copy at a time, where `Alignment.apply` makes n."""

    def __init__(self, alignment: Alignment, state_dicts: Sequence[StateDict]) -> None:
        self._spec = alignment.spec
        self._maps = [_moving(maps) for maps in alignment.permutations]
        self._state_dicts = state_dicts

    def __len__(self) -> int:
        return len(self._state_dicts)

    @overload
    def __getitem__(self, index: int) -> StateDict: ...
    @overload
    def __getitem__(self, index: slice) -> list[StateDict]: ...
    def __getitem__(self, index: int | slice) -> StateDict | list[StateDict]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        maps, state_dict = self._maps[index], self._state_dicts[index]
        return self._spec.apply(state_dict, maps) if maps else state_dict


def _moving(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The permutations that are not the identity."""
    return {group: order for group, order in maps.items() if not torch.equal(order, torch.arange(len(order)))}


def _map_to(
    universe: Mapping[str, Tensor],
    client: Mapping[str, Tensor],
    spec: PermutationSpec,
    matcher: Matcher,
    device: torch.device,
) -> dict[str, Tensor]:
    problem = MatchingProblem.build([universe, client], spec, [1.0, 1.0], device)
    of_universe, of_client = as_client_maps(problem.group_names, matcher.match(problem).permutations, 2)
    return compose(of_client, invert(of_universe))
