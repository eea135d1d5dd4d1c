"""Views, transpositions, concatenation and splitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.lookahead import taken_apart
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.symbols import UNIT, Extent
from c2m3_fl.symmetry.tensors import Stacked, Traced, Value, fixed, unify_axes

_MATRIX = ("t", "mT", "mH", "matrix_H", "adjoint")
_SELECTED = "one position is picked out by its index"


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as")
def reshape(call: Call) -> Value:
    """Products of axes where axes are flattened, factors of an axis where it is unfolded."""
    x, shape = call.tensor("self"), call.shape
    for dim, n in enumerate(shape):
        if 1 < n <= 16 and taken_apart(call.node, dim) and (stack := _unstack(x, shape, dim)) is not None:
            return stack
    return x.with_axes(_reshaped(x.axes, shape))


def _reshaped(axes: Sequence[Extent], shape: Sequence[int]) -> list[Extent]:
    if 0 in shape:
        return list(fixed(shape, "an empty tensor").axes)
    sources = [extent for extent in axes if symbols.size(extent) != 1]
    result: list[Extent] = []
    wanted = list(shape)
    while wanted:
        if wanted[0] == 1:
            result.append(UNIT)
            wanted.pop(0)
            continue
        # The shortest runs of axes before and after that hold equally many elements are folded into each other.
        taken, made = [sources.pop(0)], [wanted.pop(0)]
        while (old := math.prod(map(symbols.size, taken))) != (new := math.prod(made)):
            if old < new:
                taken.append(sources.pop(0))
            else:
                made.append(wanted.pop(0))
        rest, pieces = symbols.product(taken), []
        for n in reversed(made[1:]):
            rest, piece = symbols.split_trailing(rest, n)
            pieces.append(piece)
        result += [rest, *reversed(pieces)]
    return result


def _unstack(x: Traced, shape: Sequence[int], dim: int) -> Stacked | None:
    """Unfold one axis so that each position along the new axis `dim` keeps symbols of its own."""
    before = math.prod(shape[:dim])
    source = next((d for d in range(x.ndim) if math.prod(x.shape[:d]) == before and x.shape[d] != 1), None)
    if source is None or x.shape[source] % shape[dim]:
        return None
    n, row = shape[dim], x.shape[source] // shape[dim]
    rest = [*shape[:dim], *shape[dim + 1 :]]
    members = []
    for i in range(n):
        axes = list(x.axes)
        axes[source] = symbols.positions(axes[source], i * row, (i + 1) * row)
        members.append(x.with_axes(_reshaped(axes, rest)))
    return Stacked(dim, tuple(members))


@rule("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "numpy_T", *_MATRIX)
def transpose(call: Call) -> Any:
    """Axes in another order."""
    x = call.tensor("self")
    order = order_of(call, x.ndim)
    return NotImplemented if order is None else x.with_axes(x.axes[d] for d in order)


def order_of(call: Call, ndim: int) -> list[int] | None:
    """Where each axis of a transposition's result comes from."""
    order = list(range(ndim))
    name = call.name.removeprefix("aten::")
    if name == "permute":
        return [d % ndim for d in call["dims"]]
    if name == "numpy_T":
        return order[::-1]
    if name in ("transpose", "swapaxes", "swapdims", *_MATRIX):
        names = {"transpose": ("dim0", "dim1"), "swapdims": ("dim0", "dim1")}
        if name in _MATRIX:
            a, b = (-2, -1) if ndim > 1 else (-1, -1)
        else:
            first, second = names.get(name, ("axis0", "axis1"))
            a, b = call[first], call[second]
        order[a], order[b] = order[b], order[a]
        return order
    if name in ("movedim", "moveaxis"):
        source, target = call["source"], call["destination"]
        source, target = ([v] if isinstance(v, int) else v for v in (source, target))
        moved = {t % ndim: s % ndim for s, t in zip(source, target, strict=True)}
        others = iter([d for d in order if d not in moved.values()])
        return [moved[d] if d in moved else next(others) for d in order]
    return None


@rule("unsqueeze")
def unsqueeze(call: Call) -> Traced:
    """A new axis of size one."""
    x = call.tensor("self")
    dim = call["dim"] % (x.ndim + 1)
    return x.with_axes((*x.axes[:dim], UNIT, *x.axes[dim:]))


@rule("squeeze")
def squeeze(call: Call) -> Traced:
    """Axes of size one go."""
    x = call.tensor("self")
    dims = call.dims() if call.args.get("dim") is not None else range(x.ndim)
    return x.with_axes(e for d, e in enumerate(x.axes) if d not in dims or symbols.size(e) != 1)


@rule("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> Traced:
    """Repeated elements are equal, so their order is free."""
    x, shape = call.tensor("self"), call.shape
    new = len(shape) - x.ndim
    return x.with_axes(
        symbols.free(n) if d < new or symbols.size(x.axes[d - new]) != n else x.axes[d - new]
        for d, n in enumerate(shape)
    )


@rule("repeat", "tile")
def repeat(call: Call) -> Any:
    """Whole axes, several times over."""
    x, shape = call.tensor("self"), call.shape
    old = (UNIT,) * (len(shape) - x.ndim) + x.axes
    copies = [n // symbols.size(extent) for n, extent in zip(shape, old, strict=True)]
    return x.with_axes(symbols.product([symbols.free(k), extent]) for k, extent in zip(copies, old, strict=True))


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Any:
    """Each position of an axis, several times over."""
    if not isinstance(call.args.get("repeats"), int) or call.args.get("dim") is None:
        return NotImplemented
    x = call.tensor("self")
    axes = list(x.axes)
    axes[call["dim"]] = symbols.product([axes[call["dim"]], symbols.free(call["repeats"])])
    return x.with_axes(axes)


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Any:
    """Extents one after the other; all other axes are unified."""
    tensors = [t for t in call.tensors if t.shape != (0,)]
    if not tensors:
        return NotImplemented
    dim = call["dim"] % tensors[0].ndim
    if any(tensor.shape[dim] == 0 for tensor in tensors):
        return NotImplemented  # how many there are depends on the data
    first = tensors[0]
    for tensor in tensors[1:]:
        unify_axes(without(first.axes, dim), without(tensor.axes, dim))
    axes = list(first.axes)
    axes[dim] = tuple(segment for tensor in tensors for segment in symbols.expand(tensor.axes[dim]))
    return Traced(tuple(axes))


@rule("stack")
def stack(call: Call) -> Stacked:
    """Tensors side by side, each with axes of its own."""
    tensors = call.tensors
    return Stacked(call["dim"] % (tensors[0].ndim + 1), tuple(tensors))


@rule("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split")
def split(call: Call) -> list[Traced]:
    """Consecutive parts of an axis."""
    x = call.tensor("self")
    dim = call["dim"] % x.ndim
    sizes = [value.shape[dim] for value in call.node.meta["val"]]
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_part(x, dim, start, start + n) for start, n in zip(offsets, sizes, strict=True)]


@rule("unbind")
def unbind(call: Call) -> list[Traced]:
    """Every position of an axis by itself."""
    x = call.tensor("self")
    dim = call["dim"] % x.ndim
    symbols.pin(x.axes[dim], _SELECTED)
    return [x.with_axes(without(x.axes, dim)) for _ in range(x.shape[dim])]


@rule("select")
def select(call: Call) -> Traced:
    """One position of an axis."""
    x = call.tensor("self")
    dim = call["dim"] % x.ndim
    index = call["index"]
    if isinstance(index, int):
        start = index % x.shape[dim]
        symbols.positions(x.axes[dim], start, start + 1)
    else:
        symbols.pin(x.axes[dim], _SELECTED)
    return x.with_axes(without(x.axes, dim))


@rule("slice", "narrow")
def slice_(call: Call) -> Any:
    """A range of an axis."""
    x = call.tensor("self")
    dim = call["dim"] % x.ndim
    n = x.shape[dim]
    start, step = call.args.get("start"), call.args.get("step", 1)
    end = start + call["length"] if "length" in call.args else call.args.get("end")
    if not all(value is None or isinstance(value, int) for value in (start, end, step)):
        return NotImplemented
    start, end, step = slice(start, end, step).indices(n)
    if (start, end, step) == (0, n, 1):
        return x.with_axes(x.axes)
    if step == 1:
        return _part(x, dim, start, end)
    symbols.pin(x.axes[dim], "every second (third, ...) position is picked out")
    axes = list(x.axes)
    axes[dim] = symbols.pinned(call.shape[dim], "every second (third, ...) position is picked out")
    return Traced(tuple(axes))


@rule("diagonal")
def diagonal(call: Call) -> Any:
    """The elements at equal positions of two axes."""
    x = call.tensor("self")
    a, b = call["dim1"] % x.ndim, call["dim2"] % x.ndim
    if call["offset"] or symbols.size(x.axes[a]) != symbols.size(x.axes[b]):
        return NotImplemented
    symbols.unify(x.axes[a], x.axes[b])
    return Traced((*(extent for d, extent in enumerate(x.axes) if d not in (a, b)), x.axes[a]))


@rule("diag_embed")
def diag_embed(call: Call) -> Any:
    """A last axis as the diagonal of two; zeros elsewhere fit any order that both have."""
    x = call.tensor("self")
    if call["offset"]:
        return NotImplemented
    axes = list(x.axes[:-1])
    for dim in sorted(d % (x.ndim + 1) for d in (call["dim1"], call["dim2"])):
        axes.insert(dim, x.axes[-1])
    return Traced(tuple(axes))


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def shuffle(call: Call) -> Traced:
    """Channels exchanged with positions in space, or interleaved."""
    x = call.tensor("self")
    batch = list(x.axes[:-3])
    if call.name == "aten::channel_shuffle":
        lead, trail = symbols.split_trailing(x.axes[1], x.shape[1] // call["groups"])
        return Traced((x.axes[0], symbols.product([trail, lead]), *x.axes[2:]))
    for extent in x.axes[-2:]:
        symbols.pin(extent, "positions in space exchanged with channels")
    space = fixed(call.shape[-2:], "positions in space exchanged with channels").axes
    if call.name == "aten::pixel_shuffle":
        channels, inside = symbols.split_trailing(x.axes[-3], call["upscale_factor"] ** 2)
        symbols.pin(inside, "positions in space exchanged with channels")
    else:
        block = symbols.pinned(call["downscale_factor"] ** 2, "positions in space exchanged with channels")
        channels = symbols.product([x.axes[-3], block])
    return Traced((*batch, channels, *space))


def _part(x: Traced, dim: int, start: int, end: int) -> Traced:
    axes = list(x.axes)
    axes[dim] = symbols.positions(axes[dim], start, end)
    return x.with_axes(axes)


def without(axes: Sequence[Extent], dim: int) -> tuple[Extent, ...]:
    """All axes but one."""
    return (*axes[:dim], *axes[dim + 1 :])
