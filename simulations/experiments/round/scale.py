"""What a round costs the server: memory and time, by clients per round and by size of the network.

Each measurement is a process of its own that runs the real ServerApp for one round. Its clients do not train: they send
networks that are related as trained ones are. From a shared initialisation these are the broadcast network with noise;
from their own initialisations such networks with their neurons in random order. The peak is the operating system's.
"""

from __future__ import annotations

import logging
import multiprocessing
import resource
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from c2m3_fl import PermutationSpec
from clients.client_app import ARRAYS, METRICS
from clients.data import load_data
from clients.training import derive_seed
from simulations.app.central import global_model
from simulations.app.server_app import run
from simulations.app.settings import SimulationSettings
from simulations.experiments.federated.metering import MeteredGrid
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import Experiment, Picture, Table
from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.ledger import Cell, Record
from simulations.laboratory.staleness import code_fingerprint

_MEBIBYTE = 2**20
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_NOISE = 0.5  # of a client's weights, relative to their standard deviation
_STRATEGIES = {"fedavg": "FedAvg", "c2m3": "C2M3, guard and REPAIR"}
_COLOURS = {"fedavg": "#d9534f", "c2m3": "#1f5fa8"}
_STARTS = {"shared": "shared initialisation", "per-client": "per-client initialisation"}


@dataclass(frozen=True)
class Load:
    """What a round has to cope with.

    Attributes
    ----------
    strategy
        Name of the strategy.
    start
        ``"shared"`` or ``"per-client"`` initialisation.
    clients
        Networks in the round.
    width
        Of the multilayer perceptron; its hidden layers have 256, 512, 512 and 256 units at 1.
    """

    strategy: str
    start: str
    clients: int
    width: float


@dataclass(frozen=True)
class Cost:
    """What it took: seconds from the last reply to the new network, the process's peak and what it was before, in MiB."""

    server_seconds: float
    peak: float
    before: float
    network: float


class _Sender:
    """A client that sends a network without training one."""

    def __init__(self, settings: SimulationSettings) -> None:
        module = global_model(settings)
        shape = load_data(settings.dataset, settings.data_dir).input_shape
        self._spec = PermutationSpec.from_module(module, torch.randn(2, *shape))
        self._reorder = settings.initialisation == "per-client"

    def __call__(self, message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        generator = torch.Generator().manual_seed(derive_seed(number))
        network = cast(ArrayRecord, message.content[ARRAYS]).to_torch_state_dict()
        sent = {name: t + _NOISE * t.std() * torch.randn(t.shape, generator=generator) for name, t in network.items()}
        if self._reorder:
            sent = self._spec.apply(sent, self._spec.random(generator))
        metrics = MetricRecord({"num-examples": 1, "client-id": number})
        return Message(RecordDict({ARRAYS: ArrayRecord(sent), METRICS: metrics}), reply_to=message)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / _MEBIBYTE


def _resident() -> float:
    """What the process holds now, or where the operating system does not say, its peak."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return _peak()
    return int(statm.read_text().split()[1]) * resource.getpagesize() / _MEBIBYTE


def _measure_here(load: Load, answer: Connection) -> None:
    """Run one round and send its cost; for a process of its own."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    settings = SimulationSettings(
        strategy=load.strategy,
        initialisation=load.start,
        model_width=load.width,
        num_clients=load.clients,
        num_server_rounds=1,
        validation_fraction=0.0,
    )
    # One round with two small clients first, so that what is loaded and traced once is there before.
    warm = replace(settings, num_clients=2, model_width=0.1)
    run(MeteredGrid(_Sender(warm), 2, warm.run_config()), warm)
    before = _resident()
    federation = MeteredGrid(_Sender(settings), load.clients, settings.run_config())
    run(federation, settings)
    size = sum(t.numel() * t.element_size() for t in global_model(settings).state_dict().values())
    answer.send(Cost(federation.rounds[0].server_seconds, _peak(), before, size / _MEBIBYTE))


def measure(load: Load) -> Cost:
    """Memory and time of one round, measured in a process of its own.

    Raises
    ------
    RuntimeError
        If that process ends without an answer, for example for lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_here, args=(load, sender))
    process.start()
    sender.close()
    try:
        return cast(Cost, receiver.recv())
    except EOFError:
        raise RuntimeError(f"{load} could not be measured; the process's own messages say why.") from None
    finally:
        process.join()


def _loads(clients: Sequence[int], widths: Sequence[float], usual: tuple[int, float]) -> list[Load]:
    pairs = dict.fromkeys([*((n, usual[1]) for n in clients), *((usual[0], width) for width in widths)])
    return [Load(strategy, start, n, width) for n, width in pairs for start in _STARTS for strategy in _STRATEGIES]


SCALES = {
    "smoke": _loads((2, 4), (0.1,), (2, 0.1)),
    "cpu": _loads((10, 30, 100, 300), (0.25, 0.5, 1.0, 2.0), (10, 0.25)),
    "paper": _loads((10, 30, 100, 300, 1000), (0.25, 0.5, 1.0, 2.0, 4.0), (10, 1.0)),
}
"""Loads by size."""


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Memory and time against clients per round and against the network's size."""
    figure, axes = grid(2, 2, width=5.0, height=3.2)
    usual_width = _most_common([r.about["width"] for r in records])
    usual_clients = _most_common([r.about["clients"] for r in records])
    views = (
        ("clients", "clients per round", [r for r in records if r.about["width"] == usual_width]),
        ("network", "size of the network (MiB)", [r for r in records if r.about["clients"] == usual_clients]),
    )
    for row, (axis, x_label, chosen) in enumerate(views):
        for column, (quantity, y_label) in enumerate(
            (("server_seconds", "server seconds"), ("memory", "memory (MiB)"))
        ):
            panel = axes[2 * row + column]
            for strategy, name in _STRATEGIES.items():
                for start, style in zip(_STARTS, ("--", "-"), strict=True):
                    own = [r for r in chosen if r.about["strategy"] == strategy and r.about["start"] == start]
                    points = sorted((_value(r, axis), _value(r, quantity)) for r in own)
                    panel.plot(
                        *zip(*points, strict=True),
                        style,
                        marker="o",
                        markersize=3,
                        color=_COLOURS[strategy],
                        label=f"{name}, {_STARTS[start]}",
                    )
            panel.margins(y=0.25)
            label(panel, "", x_label, y_label, xscale="log", yscale="log")
            panel.minorticks_off()
    axes[1].legend(fontsize=6.5, loc="upper left")
    yield Picture("scale", "Server seconds and memory.", figure)


def _most_common(values: Sequence[float]) -> float:
    return statistics.mode(values)


def _value(record: Record, name: str) -> float:
    if name == "memory":
        return max(1.0, float(record.values["peak"]) - float(record.values["before"]))
    return float(record.about[name] if name in record.about else record.values[name])


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """All measurements."""
    rows = []
    for record in sorted(records, key=lambda r: (r.about["width"], r.about["clients"], r.about["start"])):
        about, memory = record.about, _value(record, "memory")
        network = float(record.values["network"])
        rows.append(
            (
                _STRATEGIES[about["strategy"]],
                str(about["start"]),
                str(about["clients"]),
                f"{network:.2f}",
                f"{record.values['server_seconds']:.2f}",
                f"{memory:.0f}",
                f"{memory / network / about['clients']:.1f}",
            )
        )
    columns = ("strategy", "initialisation", "clients", "network (MiB)", "server seconds", "extra MiB")
    yield Table("Cost of one round", (*columns, "in networks per client"), tuple(rows))


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Every load of the scale."""
    for load in SCALES[laboratory.scale.name]:
        yield Cell(
            vars(load),
            {"noise": _NOISE, "code": code_fingerprint(__name__)},
            ("digits",),
            partial(_cost, load),
        )


def _cost(load: Load) -> Mapping[str, Any]:
    return vars(measure(load))


EXPERIMENT = Experiment(
    name="scale",
    title="What a round costs the server",
    source="",
    about="One round of the ServerApp, each load in a process of its own; clients send networks without training.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    whole=False,
    page="scale",
)
