"""Clients that do not belong: outliers by their aligned distance to the others, and dissenters by their predictions.

In the universe neuron stands beside neuron, so the distance of a client to the coordinate-wise median of all clients
measures what it learnt, and not in which order it holds its neurons. It finds scaled, inverted and random weights. A
client that learnt from flipped labels is no further away than others; it is found by what it predicts, where there is a
calibration set.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional

from c2m3_fl.averaging import AverageMethod, average

Robust = Literal["exclude", "median", "trimmed-mean"]

AVERAGES: dict[Robust | None, AverageMethod] = {
    None: "mean",
    "exclude": "mean",
    "median": "median",
    "trimmed-mean": "trimmed-mean",
}
"""How each mode averages the clients that are left."""

MOST_WEIGHT = 10.0
"""A client counts for at most so many times the median client, whatever number of examples it claims."""

SPREADS = 5.0
"""How many standard deviations, estimated by the median absolute deviation, a client may lie beyond the median distance."""

LEAST_SPREAD = 0.05
"""The standard deviation is taken to be at least this share of the median distance: equal clients are no reason to be
strict."""


LEAST_AGREEMENT = 0.5
"""A client dissents if it agrees with the majority of the others less often than this share of guessing would: a client
that knows a single class agrees about as often as guessing."""


def capped(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights, none more than `MOST_WEIGHT` times the median of the positive ones."""
    limit = MOST_WEIGHT * statistics.median_low(weight for weight in weights if weight > 0)
    return tuple(min(weight, limit) for weight in weights)


def dissenters(votes: Tensor) -> dict[int, str]:
    """Clients, by position, that contradict the majority of the others more than ignorance could, and why.

    Parameters
    ----------
    votes
        The class that each client predicts for each example, LongTensor of shape ``(clients, examples)``; a row of -1 for
        a client that predicts none.
    """
    voters = [client for client in range(len(votes)) if votes.shape[1] and int(votes[client].min()) >= 0]
    if len(voters) < 3:
        return {}
    counts = functional.one_hot(votes[voters]).sum(0)
    classes = counts.shape[1]
    found = {}
    for client in voters:
        others = counts - functional.one_hot(votes[client], classes)
        agreement = float((others.argmax(1) == votes[client]).double().mean())
        if agreement < LEAST_AGREEMENT / classes:
            found[client] = f"it agrees with the majority of the others on {agreement:.1%} of the calibration set"
    return found if 2 * len(found) < len(voters) else {}


def outliers(universe: Sequence[Mapping[str, Tensor]]) -> dict[int, str]:
    """Clients, by position, that lie too far from the others, and why.

    A client is an outlier if its distance to the coordinate-wise median exceeds the median distance by `SPREADS` times
    the distances' spread. Fewer than half of the clients are ever named, the furthest; of two clients, none.

    Parameters
    ----------
    universe
        The clients' tensors, mapped to the universe.
    """
    if len(universe) < 3:
        return {}
    centre = average(universe, method="median")
    distances = [_distance(client, centre) for client in universe]
    usual = statistics.median(distances)
    spread = 1.4826 * statistics.median(abs(distance - usual) for distance in distances)
    limit = usual + SPREADS * max(spread, LEAST_SPREAD * usual)
    furthest = sorted(range(len(distances)), key=lambda client: -distances[client])[: (len(distances) - 1) // 2]
    return {
        client: f"its distance to the universe is {distances[client]:.3g}; the others' is about {usual:.3g}"
        for client in sorted(furthest)
        if distances[client] > limit
    }


def _distance(client: Mapping[str, Tensor], centre: Mapping[str, Tensor]) -> float:
    return math.sqrt(
        sum(
            float((tensor.double() - centre[name].double()).square().sum())
            for name, tensor in client.items()
            if tensor.is_floating_point()
        )
    )
