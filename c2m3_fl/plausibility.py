"""What makes a client's network one that nobody can have trained.

What counts is what training moves, the parameters, tensor by tensor: in one sum over tensors a large one would hide what
happens to the others. Buffers, such as running statistics, have the units of what the client measures: a site whose
features are in other units is no liar. They are refused where they are impossible.

The measure of a tensor is its update, the client's tensor less the broadcast one, in units of the usual size: the median
of the clients' and the broadcast tensors' Euclidean norms. Honest updates differ by factors of hundreds, with the numbers
of steps, but honest networks do not: training that goes on for long adds logarithmically. `docs/faults.md` has the
measured margins.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from c2m3_fl.layout import StateDict

MAX_GROWTH = 20.0
"""How many times the usual size of a tensor its update may be."""

MAX_GROWTH_OF_ALL = 8.0
"""The same for a network as a whole: half of its matrices or more. Of those seen to diverge on MNIST the first had 9 times
the usual norm and a loss of 543; in honest networks that differ as much as clients do, half stay below 5."""

MAX_FIRST_GROWTH = 300.0
"""How many times the usual update another may be where the broadcast tells no size, as at a start of zeros. The number of
steps alone makes factors of a hundred there."""

SPREADS = 6.0
"""Where clients disagree, an update may be so many standard deviations of the logarithms larger than usual, estimated by
their median absolute deviation, if that is more than the factors above."""

MAX_RATIO = 1e3
"""How much smaller than usual a client's network may be."""

ABSURD = 1e12
"""No tensor becomes so many times larger than the broadcast one, or one."""

MAX_CORRECTION = 100.0
"""How many times the size of its layer the correction of a tensor may be, where clients measured for it."""

MAJORITY = 3
"""So many clients at least, before one is compared with others."""


@dataclass(frozen=True)
class Sizes:
    """Norms of one client's tensors, by name.

    Attributes
    ----------
    networks
        Of all tensors of floating point.
    updates
        Of the parameters less the broadcast ones; of the tensors themselves where the broadcast is not known.
    """

    networks: Mapping[str, float]
    updates: Mapping[str, float]


def implausible(
    state_dicts: Sequence[StateDict], broadcast: StateDict | None = None, parameters: Collection[str] | None = None
) -> list[str | None]:
    """Say of each client why its network cannot be one that was trained, or None.

    Whatever the number of clients: a variance or a counter below zero, a tensor of absurd size, or parameters that are all
    zero where the broadcast ones are not. From three clients on: a tensor whose update is more than `MAX_GROWTH` times the
    usual size, as after training that diverged, or a network `MAX_RATIO` times smaller than usual (see the module).

    Parameters
    ----------
    state_dicts
        The clients' tensors: equal names, finite.
    broadcast
        The network that the clients set out from, if it is known.
    parameters
        Names of the tensors that training moves; None for all of floating point that are no running statistics.
    """
    if not state_dicts:
        return []
    names = _trained(state_dicts[0], parameters)
    start = None if broadcast is None else sizes(broadcast)
    found = [sizes(state_dict, broadcast, names) for state_dict in state_dicts]
    given = [_impossible(each, own, start, names) for each, own in zip(state_dicts, found, strict=True)]
    compared = judge(found, start, {name: state_dicts[0][name].shape for name in names})
    return [first or second for first, second in zip(given, compared, strict=True)]


def ruined(corrected: StateDict, merged: StateDict) -> str | None:
    """Say why a correction of the merged network cannot be meant, or None."""
    for name, tensor in corrected.items():
        start = merged[name]
        if bool((~torch.isfinite(tensor) & torch.isfinite(start)).any()):
            return f"tensor {name!r} has entries that are NaN or infinite"
    names = _trained(merged, None)
    found, before = sizes(corrected, merged, names), sizes(merged)
    shapes = {name: merged[name].shape for name in names}
    for name in names:
        size = max(before.networks[name], _of_the_layer(name, before.networks, shapes))
        if size > 0 and found.updates[name] > MAX_CORRECTION * size:
            return f"the correction of tensor {name!r} is {found.updates[name] / size:.3g} times its layer's size"
    return _impossible(corrected, found, before, names)


def _trained(state_dict: StateDict, parameters: Collection[str] | None) -> list[str]:
    floats = [name for name, tensor in state_dict.items() if _is_number(tensor)]
    if parameters is None:
        return [name for name in floats if _statistic(name) is None]
    return [name for name in floats if name in parameters]


def _statistic(name: str) -> str | None:
    last = name.rpartition(".")[2]
    return last if last in {"running_mean", "running_var", "num_batches_tracked"} else None


def _impossible(state_dict: StateDict, own: Sizes, start: Sizes | None, parameters: Collection[str]) -> str | None:
    """What no training brings about, without a look at other clients."""
    for name, tensor in state_dict.items():
        if _statistic(name) in {"running_var", "num_batches_tracked"} and tensor.numel() and float(tensor.min()) < 0:
            return f"tensor {name!r} holds {float(tensor.min()):.3g}; variances and counters are not negative"
    for name, size in own.networks.items():
        if size > ABSURD * max(1.0, 0.0 if start is None else start.networks[name]):
            return f"tensor {name!r} has norm {size:.3g}: diverged, or malicious"
    began = start is not None and any(start.networks[name] for name in parameters)
    return "all its parameters are zero" if began and not any(own.networks[name] for name in parameters) else None


def sizes(state_dict: StateDict, broadcast: StateDict | None = None, parameters: Collection[str] = ()) -> Sizes:
    """The norms of a client's tensors, and of its parameters' updates."""
    networks = {name: _norm(tensor) for name, tensor in state_dict.items() if _is_number(tensor)}
    if broadcast is None:
        return Sizes(networks, networks)
    updates = {name: _norm(state_dict[name] - broadcast[name].to(state_dict[name].device)) for name in parameters}
    return Sizes(networks, updates)


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def judge(clients: Sequence[Sizes], start: Sizes | None, shapes: Mapping[str, Sequence[int]]) -> list[str | None]:
    """Say of each client which of its sizes is out of proportion, or None.

    Parameters
    ----------
    clients
        Their sizes.
    start
        Those of what was broadcast, if it is known.
    shapes
        Of the tensors.
    """
    if len(clients) < MAJORITY:
        return [None] * len(clients)
    usual = {name: _Usual.of(name, clients, start, shapes) for name in shapes}
    matrices = [name for name, shape in shapes.items() if len(shape) > 1] or list(shapes)
    if not matrices:
        return [None] * len(clients)
    growths = [{name: usual[name].growth(client.updates[name]) for name in shapes} for client in clients]
    whole = [statistics.median_low([own[name] for name in matrices]) for own in growths]
    known = any(usual[name].known for name in matrices)
    limit = _limit(MAX_GROWTH_OF_ALL if known else MAX_FIRST_GROWTH, whole)
    reasons: list[str | None] = []
    for client, own, growth in zip(clients, growths, whole, strict=True):
        worst = max(own, key=lambda name: own[name] / usual[name].limit)
        if own[worst] > usual[worst].limit:
            reasons.append(
                f"the update of tensor {worst!r} has norm {client.updates[worst]:.3g}, {own[worst]:.3g} times the usual "
                f"size {usual[worst].size:.3g}: diverged, or malicious"
            )
        elif growth > limit:
            reasons.append(f"the updates of its tensors are {growth:.3g} times the usual sizes: diverged, or malicious")
        elif known and all(client.networks[name] * MAX_RATIO < usual[name].size for name in matrices):
            reasons.append(f"its tensors are smaller than a {MAX_RATIO:g}th of the usual sizes")
        else:
            reasons.append(None)
    return reasons


@dataclass(frozen=True)
class _Usual:
    """What is usual for a tensor.

    Attributes
    ----------
    size
        Norm that it usually has, or that tensors of its kind have.
    known
        Whether the broadcast tells it.
    limit
        How many times this an update may be.
    """

    size: float
    known: bool
    limit: float

    @classmethod
    def of(
        cls, name: str, clients: Sequence[Sizes], start: Sizes | None, shapes: Mapping[str, Sequence[int]]
    ) -> _Usual:
        updates = [client.updates[name] for client in clients]
        moved = statistics.median_low(updates)
        # A bias that starts from zero is measured by its layer's weights, whose entries are of its kind.
        floor = 0.0 if start is None else _of_the_layer(name, start.networks, shapes)
        known = start is None or max(start.networks[name], floor) >= 0.1 * moved
        opinions = [client.networks[name] for client in clients]
        if start is not None and known:
            opinions.append(start.networks[name])
        size = max(statistics.median_low(opinions), floor)
        if size == 0 and start is not None:  # nobody but a few has moved it: measure it by the other tensors
            size = _root_mean_square(start.networks, shapes) * math.sqrt(math.prod(shapes[name]))
        return cls(size, known, _limit(MAX_GROWTH if known else MAX_FIRST_GROWTH, updates))

    def growth(self, update: float) -> float:
        """An update in units of the usual size; where there is none, nobody moved."""
        return update / self.size if self.size > 0 else 0.0


def _of_the_layer(name: str, networks: Mapping[str, float], shapes: Mapping[str, Sequence[int]]) -> float:
    layer = name.rpartition(".")[0]
    own = {each: shapes[each] for each in shapes if each.rpartition(".")[0] == layer}
    return _root_mean_square(networks, own) * math.sqrt(math.prod(shapes[name]))


def _root_mean_square(networks: Mapping[str, float], shapes: Mapping[str, Sequence[int]]) -> float:
    entries = sum(math.prod(shape) for shape in shapes.values())
    return math.hypot(*(networks[name] for name in shapes)) / math.sqrt(max(1, entries))


def _limit(least: float, values: Sequence[float]) -> float:
    """The factor, or `SPREADS` standard deviations of the values' logarithms, by their median absolute deviation."""
    logarithms = [math.log(value) for value in values if value > 0]
    if len(logarithms) < MAJORITY:
        return least
    usual = statistics.median(logarithms)
    spread = 1.4826 * statistics.median(abs(each - usual) for each in logarithms)
    return max(least, math.exp(min(SPREADS * spread, 700.0)))


def _norm(tensor: Tensor) -> float:
    """The Euclidean norm; entries that are infinite by design do not count."""
    tensor = tensor.detach()
    found = float(torch.linalg.vector_norm(tensor, dtype=torch.complex128 if tensor.is_complex() else torch.float64))
    if math.isfinite(found):
        return found
    finite = torch.where(torch.isfinite(tensor), tensor.abs().double(), 0.0)
    largest = float(finite.max())
    return largest * float(torch.linalg.vector_norm(finite / largest)) if largest > 0 else 0.0
