"""Rows looked up, and written, by an index.

Positions that an index names stay: only then does the index mean the same before and after. All other axes may move.
"""

from __future__ import annotations

from typing import Any

import torch

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, fixed_like, rule
from c2m3_fl.symmetry.symbols import UNIT, Extent
from c2m3_fl.symmetry.tensors import Traced, broadcast, pin_all, unify_axes

_ROWS = "rows are looked up by their index"
_PICKED = "rows are picked by a mask"
_ORDER = "rows are written one after the other"


@rule("index", "_unsafe_index")
def index(call: Call) -> Any:
    """Rows looked up by index tensors, or picked by a mask, along some axes."""
    x = call.tensor("self")
    if (mask := _only_mask(call, call["indices"])) is not None:
        for tensor in (Traced(x.axes[: mask.ndim]), mask):
            pin_all(tensor, _PICKED)
        # How many rows there are depends on the data; rules that ask for it find out that it is unknown.
        return Traced((symbols.pinned(0, _PICKED), *x.axes[mask.ndim :]), source=x.source)
    axes = _indexed(call, x, call["indices"])
    return NotImplemented if axes is None else Traced(axes, source=x.source)


@rule("index_put", "_unsafe_index_put")
def index_put(call: Call) -> Any:
    """Rows written at index tensors along some axes."""
    x, indices, values = call.tensor("self"), call["indices"], call.tensor("values")
    if (mask := _only_mask(call, indices)) is not None:
        return _put_at_mask(x, mask, values)
    axes = _indexed(call, x, indices)
    if axes is None:
        return NotImplemented
    broadcast([Traced(axes), values])
    if not call.args.get("accumulate"):
        for given in indices:
            if given is not None:
                pin_all(given, _ORDER)
    return Traced(x.axes)


def _put_at_mask(x: Traced, mask: Traced, values: Traced) -> Traced:
    """The same in all rows that a mask picks, or one row of values after the other."""
    rest = x.axes[mask.ndim :]
    if values.ndim > len(rest) and symbols.size(values.axes[0]) != 1:
        for extent in (*x.axes[: mask.ndim], *mask.axes, values.axes[0]):
            symbols.pin(extent, _PICKED)
    unify_axes(mask.axes, x.axes[: mask.ndim])
    row = values.axes[-len(rest) :] if rest else ()
    broadcast([Traced(rest), Traced(row)])
    return Traced(x.axes)


def _indexed(call: Call, x: Traced, indices: list[Traced | None]) -> tuple[Extent, ...] | None:
    """Axes of the rows that integer indices name, or None where a mask is among them."""
    if _any_mask(call):
        return None
    places = [d for d, given in enumerate(indices) if given is not None]
    for d in places:
        symbols.pin(x.axes[d], _ROWS)
    shared = broadcast([given for given in indices if given is not None]).axes
    rest = [extent for d, extent in enumerate(x.axes) if d not in places]
    adjacent = places == list(range(places[0], places[0] + len(places)))
    start = places[0] if adjacent else 0
    return (*rest[:start], *shared, *rest[start:])


def _any_mask(call: Call) -> bool:
    return any(_is_mask(node) for node in call.node.args[1] if node is not None)  # type: ignore[union-attr]


def _only_mask(call: Call, indices: list[Traced | None]) -> Traced | None:
    return indices[0] if len(indices) == 1 and _any_mask(call) else None


def _is_mask(node: Any) -> bool:
    return node.meta["val"].dtype in (torch.bool, torch.uint8)


@rule("index_select")
def index_select(call: Call) -> Traced:
    """Rows looked up along one axis."""
    x, dim = call.tensor("self"), call["dim"] % call.tensor("self").ndim
    symbols.pin(x.axes[dim], _ROWS)
    axes = list(x.axes)
    axes[dim] = call.tensor("index").axes[0] if call.tensor("index").ndim else UNIT
    return Traced(tuple(axes), source=x.source)


@rule("embedding")
def embedding(call: Call) -> Traced:
    """Rows of the weight looked up by token."""
    weight, tokens = call.tensor("weight"), call.tensor("indices")
    symbols.pin(weight.axes[0], _ROWS)
    call.names.produce(weight.axes[1], weight)
    return Traced((*tokens.axes, weight.axes[1]))


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[Any]:
    """Rows of the weight, looked up and pooled."""
    weight = call.tensor("weight")
    for name, value in call.args.items():
        if name != "weight" and isinstance(value, Traced):
            pin_all(value, _ROWS)
    symbols.pin(weight.axes[0], _ROWS)
    call.names.produce(weight.axes[1], weight)
    bags, *others = fixed_like(call.node.meta["val"], _ROWS)
    return [Traced((bags.axes[0], weight.axes[1])), *others]


@rule("index_add", "index_copy", "index_reduce")
def index_add(call: Call) -> Any:
    """Rows added to, or written over, those that an index names."""
    x, rows, source = call.tensor("self"), call.tensor("index"), call.tensor("source")
    if not x.ndim:
        return NotImplemented
    dim = call["dim"] % x.ndim
    symbols.pin(x.axes[dim], _ROWS)
    for d, (extent, other) in enumerate(zip(x.axes, source.axes, strict=True)):
        if d != dim:
            symbols.unify(extent, other)
    if rows.ndim:
        symbols.unify(rows.axes[0], source.axes[dim])
    if call.name == "aten::index_copy":
        symbols.pin(source.axes[dim], _ORDER)
    return Traced(x.axes)


@rule("index_fill")
def index_fill(call: Call) -> Traced:
    """One value in all rows that an index names."""
    x = call.tensor("self")
    symbols.pin(x.axes[call["dim"] % x.ndim], _ROWS)
    return Traced(x.axes)


@rule("gather")
def gather(call: Call) -> Any:
    """Each element looked up along one axis, at its own position along all others."""
    x, places = call.tensor("self"), call.tensor("index")
    if not x.ndim:
        return NotImplemented
    _match(call, x, places)
    return Traced(places.axes)


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> Any:
    """Each element written along one axis, at its own position along all others."""
    x, places, source = call.tensor("self"), call.tensor("index"), call.maybe("src")
    if not x.ndim:
        return NotImplemented
    dim = _match(call, x, places)
    if source is not None:
        for extent, n, other in zip(source.axes, places.shape, places.axes, strict=True):
            symbols.unify(symbols.positions(extent, 0, n), other)
    if call.name == "aten::scatter" and source is not None:
        symbols.pin(places.axes[dim], _ORDER)
    return Traced(x.axes)


def _match(call: Call, x: Traced, places: Traced) -> int:
    """Pin the axis that an index points into; along the others an index has the order of what it indexes."""
    dim = int(call["dim"]) % x.ndim
    symbols.pin(x.axes[dim], _ROWS)
    for d, (extent, n) in enumerate(zip(x.axes, places.shape, strict=True)):
        if d != dim:
            symbols.unify(symbols.positions(extent, 0, n), places.axes[d])
    return dim
