"""What a round costs beside FedAvg's, and where the time goes: `aggregate_train` alone, in CPU-seconds of one thread.

Clients do not train: from a common start they are one network with small noise, from their own starts random networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from c2m3_fl import C2M3
from c2m3_fl.session import STEPS
from clients.models import build_model
from simulations.laboratory.experiment import Experiment, Picture, Table
from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.ledger import Cell, Record
from simulations.laboratory.staleness import code_fingerprint

_NOISE = 0.02  # of a client's weights, relative to their standard deviation
_REPEATS = {"common": 3, "own": 1}


@dataclass(frozen=True)
class Round:
    """A round.

    Attributes
    ----------
    network
        Name of its architecture.
    start
        ``"common"`` or ``"own"``.
    clients
        Their number.
    inputs
        Number of calibration inputs; 0 for none.
    """

    network: str
    start: str
    clients: int
    inputs: int


_NETWORKS: Mapping[str, tuple[str, tuple[int, int, int], float]] = {
    "mlp": ("mlp", (1, 28, 28), 1.0),
    "cnn": ("cnn", (3, 32, 32), 0.5),
    "resnet20": ("resnet20", (3, 32, 32), 1.0),
    "vgg16-0.25x": ("vgg16", (3, 32, 32), 0.25),
    "tiny": ("mlp", (1, 8, 8), 0.1),
}

ROUNDS: Mapping[str, Sequence[Round]] = {
    "smoke": [Round("tiny", start, 3, inputs) for start in _REPEATS for inputs in (0, 16)],
    "cpu": [
        *(Round("mlp", start, n, inputs) for start in _REPEATS for n in (5, 20) for inputs in (0, 256)),
        *(Round(name, "common", 5, 256) for name in ("cnn", "resnet20", "vgg16-0.25x")),
        *(Round(name, "own", 5, 256) for name in ("cnn", "resnet20")),
    ],
}
ROUNDS = {
    **ROUNDS,
    "paper": [*ROUNDS["cpu"], Round("vgg16-0.25x", "own", 5, 256), Round("resnet20", "common", 20, 256)],
}
"""Rounds by size."""


def build(network: str) -> nn.Module:
    """A network of the architecture, from the global random state."""
    model, shape, width = _NETWORKS[network]
    return build_model(model, input_shape=shape, num_classes=10, width=width, norm="layer")


def networks(load: Round) -> list[dict[str, Tensor]]:
    """What the clients send."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        common = build(load.network).state_dict()
        clients = []
        for client in range(load.clients):
            torch.manual_seed(client + 1)
            if load.start == "own":
                clients.append(dict(build(load.network).state_dict()))
            else:
                noisy = {
                    name: t + _NOISE * t.std() * torch.randn_like(t) for name, t in common.items() if t.numel() > 1
                }
                clients.append({**common, **noisy})
    return clients


def replies(clients: Sequence[Mapping[str, Tensor]]) -> list[Message]:
    """The clients' answers to a training message."""
    asked = [Message(RecordDict(), node + 1, MessageType.TRAIN) for node in range(len(clients))]
    return [
        Message(
            RecordDict({"arrays": ArrayRecord(dict(client)), "metrics": MetricRecord({"num-examples": 100})}),
            reply_to=message,
        )
        for client, message in zip(clients, asked, strict=True)
    ]


def measure(load: Round) -> Mapping[str, Any]:
    """CPU-seconds of one thread, least of several tries: both strategies, the bare forward passes, and C2M3's steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sent = replies(networks(load))
        shape = _NETWORKS[load.network][1]
        inputs = torch.randn(max(load.inputs, 2), *shape, generator=torch.Generator().manual_seed(0))
        module = build(load.network).eval()
        spec = C2M3(module=module, calibration=inputs[:2], device="cpu").spec
        strategy = C2M3(module=module, spec=spec, calibration=inputs if load.inputs else None, device="cpu")
        fedavg = FedAvg()
        tries = _REPEATS[load.start]
        found = {
            "fedavg": _seconds(lambda: fedavg.aggregate_train(1, sent), 5),
            "c2m3": _seconds(lambda: strategy.aggregate_train(1, sent), tries),
            "forward": _seconds(lambda: _passed(module, inputs), 3) if load.inputs else 0.0,
        }
        metrics = strategy.train_metrics[1]
        steps = {step: float(str(metrics[f"c2m3-{step}-seconds"])) for step in STEPS}
        return found | steps | {"moved": float(str(metrics["c2m3-moved"])), "memory": _memory(strategy, sent)}
    finally:
        torch.set_num_threads(threads)


def _passed(module: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        module(inputs)


def _seconds(action: Callable[[], object], tries: int) -> float:
    least = float("inf")
    for _ in range(tries):
        started = time.process_time()
        action()
        least = min(least, time.process_time() - started)
    return least


def _memory(strategy: C2M3, sent: Sequence[Message]) -> float:
    """Peak of what torch allocates on the CPU in a round, in multiples of all that the clients sent."""
    size = sum(record.count_bytes() for message in sent for record in message.content.array_records.values())
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        strategy.aggregate_train(1, sent)
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / size


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Ratios, and where C2M3's time goes."""
    rows = []
    for record in records:
        about, values = record.about, record.values
        passes = (about["clients"] + (2 if about["start"] == "common" else 4)) * values["forward"]
        rows.append(
            (
                str(about["network"]),
                str(about["start"]),
                str(about["clients"]),
                str(about["inputs"]),
                f"{values['c2m3'] / values['fedavg']:.1f}",
                f"{values['c2m3'] / passes:.2f}" if passes else "",
                *(f"{values[step]:.2f}" for step in STEPS),
                f"{values['memory']:.2f}",
            )
        )
    columns = (
        "network",
        "start",
        "clients",
        "inputs",
        "times FedAvg",
        "over bare passes",
        *(f"{s} (s)" for s in STEPS),
    )
    yield Table("Server CPU time of a round", (*columns, "memory, in clients' networks"), tuple(rows))


def no_pictures(_records: Sequence[Record]) -> Iterator[Picture]:
    """None."""
    return iter(())


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Every round of the scale."""
    for load in ROUNDS[laboratory.scale.name]:
        depends = {"noise": _NOISE, "code": code_fingerprint(__name__)}
        yield Cell(vars(load), depends, (), partial(measure, load))


EXPERIMENT = Experiment(
    name="round",
    title="What a round costs beside FedAvg",
    source="",
    about="`aggregate_train` of both strategies on the same replies, one thread; clients send networks without training.",
    cells=cells,
    tables=tables,
    pictures=no_pictures,
    page="scale",
)
