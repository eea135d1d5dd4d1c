"""LSTM, GRU and plain recurrent networks: the stacked gates are (gates, hidden), with hidden a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.symbols import Extent
from c2m3_fl.symmetry.tensors import Stacked, Traced, unify_axes

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_GATE = "the gates of a recurrent layer"
_TIME = "the order of time steps"


@dataclass(frozen=True)
class _Cell:
    """The parameters of one layer in one direction; `projection` for LSTMs with `proj_size`."""

    from_input: Traced
    from_hidden: Traced
    biases: tuple[Traced, ...]
    projection: Traced | None


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> list[Any]:
    """Outputs of the last layer and the last state of every layer."""
    gates = _GATES[call.name.removeprefix("aten::")]
    packed = "data" in call.args
    x = call.tensor("data" if packed else "input")
    time = 0 if packed or x.ndim == 2 or not call["batch_first"] else 1
    symbols.pin(x.axes[time], _TIME)
    directions = 2 if call["bidirectional"] else 1
    cells = list(_cells(call))
    initial = [call["hx"]] if isinstance(call["hx"], Traced) else call["hx"]
    features, hidden, outputs = x.axes[-1], [], []
    for layer in range(call["num_layers"]):
        ends = []
        for cell in cells[layer * directions : (layer + 1) * directions]:
            h, out = _cell(call, gates, features, cell)
            hidden.append(h)
            outputs.append(out)
            ends.append(out)
        features = tuple(segment for end in ends for segment in symbols.expand(end))
    batch = initial[0].axes[1:-1] if packed or x.ndim == 2 else (x.axes[1 - time],)
    states = [_state(given, axes, batch) for given, axes in zip(initial, (outputs, hidden), strict=False)]
    return [Traced((*x.axes[:-1], features)), *states]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call: Call) -> Any:
    """One time step."""
    gates = _GATES[call.name.removeprefix("aten::").removesuffix("_cell")]
    x = call.tensor("input")
    states = [call["hx"]] if isinstance(call["hx"], Traced) else call["hx"]
    biases = tuple(b for b in (call.maybe("b_ih"), call.maybe("b_hh")) if b is not None)
    h, _ = _cell(call, gates, x.axes[-1], _Cell(call.tensor("w_ih"), call.tensor("w_hh"), biases, None))
    for state in states:
        symbols.unify(state.axes[-1], h)
        if state.ndim > 1:
            symbols.unify(state.axes[0], x.axes[0])
    result = Traced((*x.axes[:-1], h))
    return [result, result] if call.name == "aten::lstm_cell" else result


def _cells(call: Call) -> Iterator[_Cell]:
    weights: Sequence[Traced] = call["params"]
    directions = 2 if call["bidirectional"] else 1
    each = len(weights) // (call["num_layers"] * directions)
    biases = 2 if call["has_biases"] else 0
    for start in range(0, len(weights), each):
        own = weights[start : start + each]
        projection = own[2 + biases] if each > 2 + biases else None
        yield _Cell(own[0], own[1], tuple(own[2 : 2 + biases]), projection)


def _cell(call: Call, gates: int, features: Extent, cell: _Cell) -> tuple[Extent, Extent]:
    """Constrain one cell; its hidden axis (the memory's) and its output axis."""
    size = cell.from_input.shape[0] // gates
    hidden = symbols.free(size)
    stacked = symbols.product([symbols.pinned(gates, _GATE), hidden])
    for tensor in (cell.from_input, cell.from_hidden, *cell.biases):
        symbols.unify(tensor.axes[0], stacked)
    symbols.unify(cell.from_input.axes[1], features)
    call.names.produce(hidden, cell.from_input)
    if cell.projection is None:
        symbols.unify(cell.from_hidden.axes[1], hidden)
        return hidden, hidden
    symbols.unify(cell.projection.axes[1], hidden)
    symbols.unify(cell.from_hidden.axes[1], cell.projection.axes[0])
    call.names.produce(cell.projection.axes[0], cell.projection)
    return hidden, cell.projection.axes[0]


def _state(given: Traced, axes: Sequence[Extent], batch: Sequence[Extent]) -> Stacked:
    """Tie an initial state, one tensor for all layers, to them (zeros fit any order); the last state."""
    if not given.uniform:
        symbols.pin(given.axes[0], "layers of a recurrent network")
        unify_axes(given.axes[1:-1], batch)
        for extent in axes:
            symbols.unify(given.axes[-1], extent)
    return Stacked(0, tuple(Traced((*batch, extent)) for extent in axes))
