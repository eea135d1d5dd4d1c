"""Pooling, resampling and padding: channels pass, positions in space stay."""

from __future__ import annotations

import math
from typing import Any

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.symbols import Extent
from c2m3_fl.symmetry.tensors import Traced, broadcast

_SPATIAL = "spatial positions of pooling or resampling"
_POOLS = [f"{kind}{n}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool") for n in (1, 2, 3)]
_PAIRS = [f"{kind}{n}d" for kind in ("adaptive_max_pool",) for n in (1, 2, 3)]
_WITH_INDICES = [f"max_pool{n}d_with_indices" for n in (1, 2, 3)]
_UPSAMPLE = [
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d")),
    *("upsample_trilinear3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa"),
]
_EDGES = [f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)]


@rule(*_POOLS, *_UPSAMPLE, *_EDGES)
def pool(call: Call) -> Traced:
    """Windows over the last axes."""
    x = call.tensor("self") if "self" in call.args else call.tensor("input")
    space = int(next(c for c in reversed(call.name) if c.isdigit()))
    for extent in x.axes[x.ndim - space :]:
        symbols.pin(extent, _SPATIAL)
    spatial = (symbols.pinned(n, _SPATIAL) for n in call.shape[-space:])
    return Traced((*x.axes[: x.ndim - space], *spatial))


@rule(*_PAIRS, *_WITH_INDICES)
def pool_with_indices(call: Call) -> list[Traced]:
    """Windows over the last axes, and where in them the result was found."""
    return [pool(call), pool(call)]


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback")
def grid_sample(call: Call) -> Traced:
    """Values of each channel at the places of a grid."""
    x, grid = call.tensor("input"), call.tensor("grid")
    symbols.unify(x.axes[0], grid.axes[0])
    for extent in (*x.axes[2:], grid.axes[-1]):
        symbols.pin(extent, _SPATIAL)
    return Traced((*x.axes[:2], *grid.axes[1:-1]))


@rule("max_unpool2d", "max_unpool3d")
def unpool(call: Call) -> Traced:
    """Each value back to where its channel's window had it."""
    x = broadcast([call.tensor("self"), call.tensor("indices")])
    space = int(next(c for c in reversed(call.name) if c.isdigit()))
    for extent in x.axes[x.ndim - space :]:
        symbols.pin(extent, _SPATIAL)
    return Traced((*x.axes[: x.ndim - space], *(symbols.pinned(n, _SPATIAL) for n in call.shape[-space:])))


@rule("im2col", "col2im")
def windows(call: Call) -> Traced:
    """Windows of an image, laid side by side: channels, then the positions inside of a window; and the way back."""
    x = call.tensor("self")
    kernel = math.prod(call["kernel_size"])
    channels = x.ndim - (3 if call.name == "aten::im2col" else 2)
    for extent in x.axes[channels + 1 :]:
        symbols.pin(extent, _SPATIAL)
    if call.name == "aten::im2col":
        made = symbols.product([x.axes[channels], symbols.pinned(kernel, _SPATIAL)])
    else:
        made, inside = symbols.split_trailing(x.axes[channels], kernel)
        symbols.pin(inside, _SPATIAL)
    space = (symbols.pinned(n, _SPATIAL) for n in call.shape[channels + 1 :])
    return Traced((*x.axes[:channels], made, *space))


@rule("unfold")
def slide(call: Call) -> Traced:
    """A window sliding along one axis."""
    x = call.tensor("self")
    dim = call["dimension"] % x.ndim
    symbols.pin(x.axes[dim], _SPATIAL)
    axes = list(x.axes)
    axes[dim] = symbols.pinned(call.shape[dim], _SPATIAL)
    return Traced((*axes, symbols.pinned(call["size"], _SPATIAL)))


@rule("pad", "constant_pad_nd")
def pad(call: Call) -> Any:
    """Padding with one value adds positions that fit any order; other modes look at neighbours."""
    x, amounts = call.tensor("self"), call["pad"]
    if 0 in x.shape:
        return NotImplemented  # how many there are depends on the data
    axes = list(x.axes)
    constant = call.args.get("mode", "constant") == "constant"
    for position in range(len(amounts) // 2):
        before, after = amounts[2 * position], amounts[2 * position + 1]
        dim = x.ndim - 1 - position
        if not (before or after):
            continue
        if constant:
            axes[dim] = _padded(axes[dim], before, after)
        else:
            symbols.pin(axes[dim], _SPATIAL)
            axes[dim] = symbols.pinned(call.shape[dim], _SPATIAL)
    return Traced(tuple(axes))


def _padded(extent: Extent, before: int, after: int) -> Extent:
    kept = symbols.positions(extent, max(0, -before), symbols.size(extent) + min(0, after))
    head = symbols.free(before) if before > 0 else ()
    tail = symbols.free(after) if after > 0 else ()
    return (*head, *kept, *tail)
