"""Normalisation layers. Statistics taken over an axis do not depend on its order."""

from __future__ import annotations

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.tensors import Traced, broadcast


@rule("batch_norm", "instance_norm")
def channel_norm(call: Call) -> Traced:
    """Affine parameters and running statistics follow the channels."""
    x = call.tensor("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (vector := call.maybe(name)) is not None:
            symbols.unify(x.axes[1], vector.axes[0])
    return x.with_axes(x.axes)


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> Traced:
    """Affine parameters follow the normalised axes."""
    x = call.tensor("input")
    affine = [tensor for name in ("weight", "bias") if (tensor := call.maybe(name)) is not None]
    return broadcast([x, *affine])


@rule("group_norm")
def group_norm(call: Call) -> Traced:
    """Groups may change places, and channels inside of them, alike in each group."""
    x, groups = call.tensor("input"), call["num_groups"]
    if groups > 1:
        group, inside = symbols.split_trailing(x.axes[1], x.shape[1] // groups)
        call.names.role(group, "groups")
        call.names.role(inside, "inner")
    for name in ("weight", "bias"):
        if (vector := call.maybe(name)) is not None:
            symbols.unify(x.axes[1], vector.axes[0])
    return x.with_axes(x.axes)


@rule("_weight_norm")
def weight_norm(call: Call) -> Traced:
    """Directions times magnitudes, which have one element per position of one axis."""
    v, g = call.tensor("v"), call.tensor("g")
    return Traced(broadcast([v, g]).axes, source=v.source)
