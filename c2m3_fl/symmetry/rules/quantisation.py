"""Rounding to a grid while training: one scale for a whole tensor, or one for each channel."""

from __future__ import annotations

from typing import Any

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.tensors import Traced, pin_all


@rule("_fused_moving_avg_obs_fq_helper", "fused_moving_avg_obs_fake_quant")
def observed(call: Call) -> Any:
    """Rounded by the extremes that an observer keeps."""
    x = call.tensor("self")
    for name in ("running_min", "running_max", "scale", "zero_point"):
        _follow(call, x, call.tensor(name), int(call["ch_axis"]))
    result = x.with_axes(x.axes)
    return [result, result] if call.name == "aten::_fused_moving_avg_obs_fq_helper" else result


@rule("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine")
def rounded(call: Call) -> Traced:
    """Rounded by given scales."""
    x = call.tensor("self")
    for name in ("scale", "zero_point"):
        if (given := call.maybe(name)) is not None:
            _follow(call, x, given, int(call.args.get("axis") or 0))
    return x.with_axes(x.axes)


def _follow(call: Call, x: Traced, given: Traced, axis: int) -> None:
    """One number for each position of an axis moves along with it; anything else stays."""
    per_channel = call.args.get("per_row_fake_quant", call.name == "aten::fake_quantize_per_channel_affine")
    if per_channel and given.ndim == 1 and given.shape[0] == x.shape[axis]:
        symbols.unify(given.axes[0], x.axes[axis])
    elif per_channel:
        symbols.pin(x.axes[axis], "channels whose scales an observer has not measured")
    else:
        pin_all(given, "one scale for a whole tensor")
