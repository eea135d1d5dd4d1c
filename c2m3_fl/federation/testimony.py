"""Whether what clients say of their activations can be believed: each is compared with the others, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2m3_fl.activations import Moments

MAX_DEVIATION = 10.0
"""A channel's mean may lie so many spreads from the median client's: the larger of the clients' own spread around it, by
their median absolute deviation, and the median client's standard deviation."""

MAX_STRETCH = 30.0
"""A channel's standard deviation may be so many times the median client's."""

MAJORITY = 3
"""So many clients at least, before one is compared with others."""


def believable(own: Sequence[Moments], merged: Sequence[Moments]) -> list[str | None]:
    """Say of each client why its moments of a layer cannot be believed, or None.

    Parameters
    ----------
    own
        Each client's moments of its own network, in the universe's order of channels.
    merged
        Each client's moments of the merged network.
    """
    first, second = _deviating(own), _deviating(merged)
    return [
        f"{a} of its own network" if a else f"{b} of the merged network" if b else None
        for a, b in zip(first, second, strict=True)
    ]


def _deviating(clients: Sequence[Moments]) -> list[str | None]:
    if len(clients) < MAJORITY:
        return [None] * len(clients)
    means = torch.stack([client.mean for client in clients])
    stds = torch.stack([client.std for client in clients])
    centre, usual = _median(means), _median(stds)
    usual = usual.clamp_min(float(usual.square().mean().sqrt()))  # a channel that is dead in most has others' scale
    spread = torch.maximum(1.4826 * _median((means - centre).abs()), usual)
    far = (means - centre).abs() > MAX_DEVIATION * spread
    wide = stds > MAX_STRETCH * usual
    return [
        "it reports an impossible mean"
        if bool(a.any())
        else "it reports an impossible variance"
        if bool(b.any())
        else None
        for a, b in zip(far, wide, strict=True)
    ]


def _median(values: Tensor) -> Tensor:
    return values.quantile(0.5, dim=0)
