"""Rows looked up by an index."""

from __future__ import annotations

from typing import Any

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.symbols import UNIT
from c2m3_fl.symmetry.tensors import Traced

_ROWS = "rows are looked up by their index"


@rule("index")
def index(call: Call) -> Any:
    """Rows looked up by an index tensor along one axis."""
    x, indices = call.tensor("self"), call["indices"]
    places = [d for d, i in enumerate(indices) if i is not None]
    if len(places) != 1 or len(call.shape) != x.ndim - 1 + indices[places[0]].ndim:
        return NotImplemented
    (dim,) = places
    symbols.pin(x.axes[dim], _ROWS)
    return Traced((*x.axes[:dim], *indices[dim].axes, *x.axes[dim + 1 :]), source=x.source)


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
