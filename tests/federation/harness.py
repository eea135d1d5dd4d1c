"""A tiny federation in one process, whose server can be stopped at a given place: for the tests of checkpoints.

Run as a program it does the rounds that are missing, and writes what came of them::

    python -m tests.federation.harness CHECKPOINT OUTPUT [PHASE]

With a phase it stops in that phase of round 3, after it has created ``OUTPUT``, and waits to be killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

import c2m3_fl.federation.checkpoint
from c2m3_fl import C2M3
from c2m3_fl.federation.client import MOMENTS_QUERY, answer_moments, attach_moments
from c2m3_fl.matching import CoordinateAscent, Matching, MatchingProblem
from c2m3_fl.symmetry import PermutationSpec
from simulations.engines.grid import InProcessGrid

CLIENTS = 4
ROUNDS = 5
STOP_IN_ROUND = 3
PHASES = ("train", "match", "query", "evaluate", "write", "half-written")

app = ClientApp()
_now = {"round": 0}
_stop: dict[str, Any] = {"phase": None, "marker": None}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 3))


def examples(client: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(client)
    inputs = torch.randn(40, 6, generator=generator)
    return inputs, (inputs[:, :3] + 0.1 * client).argmax(1)


def initial() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(network().state_dict())


def pause(phase: str) -> None:
    if _stop["phase"] == phase and _now["round"] == STOP_IN_ROUND:
        Path(_stop["marker"]).touch()
        time.sleep(600)


def _model(message: Message) -> nn.Module:
    model = network()
    model.load_state_dict(cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict())
    return model


@app.train()
def train(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    _now["round"] = int(cast(Any, message.content["config"])["server-round"])
    pause("train")
    model, (inputs, labels) = _model(message), examples(client)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(labels), "client-id": client, "loss": float(loss.detach())})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    attach_moments(content, message, model, inputs, device="cpu")
    return Message(content, reply_to=message)


@app.query(MOMENTS_QUERY)
def moments(message: Message, context: Context) -> Message:
    pause("query")
    return answer_moments(message, network(), examples(int(context.node_config["partition-id"]))[0], device="cpu")


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    pause("evaluate")
    inputs, labels = examples(int(context.node_config["partition-id"]))
    loss = float(nn.functional.cross_entropy(_model(message).eval()(inputs), labels).detach())
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 40, "loss": loss})}), reply_to=message)


class Pausing:
    """A matcher that can stop half-way."""

    def match(self, problem: MatchingProblem) -> Matching:
        pause("match")
        return CoordinateAscent().match(problem)


def strategy(checkpoint: Path | None, **options: Any) -> C2M3:
    """Half of the clients train each round, drawn from the global generators."""
    found = {
        "module": network,
        "spec": PermutationSpec.from_module(network(), torch.zeros(2, 6)),
        "moments_from": "clients",
        "exchanges": 2,
        "matcher": Pausing(),
        "guard": False,
        "checkpoint": checkpoint,
        "device": "cpu",
        "fraction_train": 0.5,
        "fraction_evaluate": 0.5,
    }
    return C2M3(**found | options)  # type: ignore[arg-type]


def run(checkpoint: Path | None, rounds: int = ROUNDS, **options: Any) -> dict[str, Any]:
    """Do the rounds that are missing; what came of all of them, but for times."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    server = strategy(checkpoint, **options)
    arrays, done = ArrayRecord(initial()), 0
    if checkpoint is not None:
        arrays, done = server.resume(arrays)
    result = server.start(InProcessGrid(app, CLIENTS, {}), arrays, num_rounds=rounds - done)
    digest = hashlib.sha256(b"".join(array.data for array in result.arrays.values())).hexdigest()
    history = {"train": server.train_metrics, "evaluate": server.evaluate_metrics}
    timeless = {
        kind: {n: {k: v for k, v in metrics.items() if "seconds" not in k} for n, metrics in by_round.items()}
        for kind, by_round in history.items()
    }
    draws = [random.random(), float(np.random.random()), float(torch.rand(()))]
    return {"done": done, "digest": digest, "history": json.loads(json.dumps(timeless)), "draws": draws}


def _stop_while_writing(phase: str) -> None:
    if phase == "write":
        flush = c2m3_fl.federation.checkpoint.os.fsync

        def fsync(descriptor: int) -> None:
            pause("write")
            flush(descriptor)

        c2m3_fl.federation.checkpoint.os.fsync = fsync
    if phase == "half-written":
        replace = c2m3_fl.federation.checkpoint.os.replace

        def half(partial: str, path: Path) -> None:
            if _now["round"] == STOP_IN_ROUND:
                os.truncate(partial, 1000)
            pause("half-written")
            replace(partial, path)

        c2m3_fl.federation.checkpoint.os.replace = half  # type: ignore[assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[2])
    if len(sys.argv) > 3:
        _stop.update(phase=sys.argv[3], marker=output)
        _stop_while_writing(sys.argv[3])
    finished = run(Path(sys.argv[1]))
    output.write_text(json.dumps(finished))
