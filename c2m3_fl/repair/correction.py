"""The correction of one site: a scale and a shift per channel, folded into the layer's own parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from c2m3_fl.activations.moments import Moments, Statistics
from c2m3_fl.activations.sites import channel_norms, fold

MAX_GAIN = 1e3
"""A channel whose spread is further than this factor below its goal carries no signal that a gain could restore."""

ROUNDING = 1e-6
"""A spread below this fraction of the mean is float32's rounding, not signal."""


def is_constant(moments: Moments) -> Tensor:
    """Channels that do not vary but for rounding; boolean, shape ``(channels,)``."""
    return moments.std <= ROUNDING * moments.mean.abs()


def correct(
    layer: nn.Module,
    current: Statistics,
    goal: Statistics,
    constant: Tensor | None = None,
    bound: Tensor | None = None,
) -> None:
    """Move the layer's output from its current statistics to the goal, in place.

    ``scale = goal.std / current.std`` and ``shift = goal.mean - scale * current.mean``. A channel that is constant, or
    so nearly that its gain would exceed `MAX_GAIN`, is only shifted. Where there is a bound, shape ``(channels,)``, no
    channel's weights are scaled up beyond that norm; the mean then has its goal all the same, the spread falls short.
    """
    device = next(layer.parameters(recurse=False)).device
    mean, std = current.mean.to(device), current.std.to(device)
    goal_mean, goal_std = goal.mean.to(device), goal.std.to(device)
    varies = std * MAX_GAIN > goal_std
    if constant is not None:
        varies &= ~constant.to(device)
    scale = torch.where(varies, goal_std / torch.where(varies, std, 1.0), 1.0)
    if bound is not None:
        norms = channel_norms(layer)
        most = torch.where(norms > 0, bound.to(device) / torch.where(norms > 0, norms, 1.0), 1.0).clamp_min(1.0)
        scale = torch.minimum(scale, most)
    fold(layer, scale, goal_mean - scale * mean)
