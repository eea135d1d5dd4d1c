"""The benchmark's cells: each strategy on each federation, from each seed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from clients.client_app import app as client_app
from simulations.app.records import RoundRecord
from simulations.app.server_app import run
from simulations.app.settings import SimulationSettings
from simulations.experiments.federated.federations import SCALES, Federation
from simulations.experiments.federated.metering import FirstRound, MeteredGrid
from simulations.experiments.federated.methods import METHODS
from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.ledger import Cell
from simulations.laboratory.staleness import code_fingerprint

CLIENTS = "clients"
"""Name of the measurement of the clients' own networks, in federations of one round."""

# Where a run is made changes none of its figures, or is said by the record's hardware.
_ELSEWHERE = ("data-dir", "download", "output", "client-device", "server-device", "server-threads", "compare")


class LostRoundError(RuntimeError):
    """A strategy could not aggregate in any round: its figures would be those of the network before."""


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Every strategy on every federation of the scale, seed by seed; they share the clients' first round."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    for federation in SCALES[laboratory.scale.name]():
        for seed in federation.seeds:
            clients = FirstRound(client_app)
            for method, settings in _plan(federation, seed):
                measure = _judge_clients if method == CLIENTS else _train
                yield Cell(
                    {"cell": federation.name, "method": method, "seed": seed},
                    {"settings": _unusual(settings), "code": code_fingerprint(__name__)},
                    (settings.dataset,),
                    partial(measure, _located(settings, laboratory.store.data_dir), clients),
                )


def _plan(federation: Federation, seed: int) -> Iterator[tuple[str, SimulationSettings]]:
    """The measurements of one repetition."""
    settings = replace(federation.settings, seed=seed, num_clients=federation.num_clients)
    if settings.num_server_rounds == 1:
        yield CLIENTS, settings
    for name in federation.methods:
        yield name, replace(settings, **METHODS[name].overrides)


def _unusual(settings: SimulationSettings) -> dict[str, Any]:
    """What differs from the defaults: the defaults themselves are in the code."""
    usual = SimulationSettings().run_config()
    return {k: v for k, v in settings.run_config().items() if k not in _ELSEWHERE and v != usual[k]}


def _located(settings: SimulationSettings, folder: Path) -> SimulationSettings:
    archive = folder.resolve() / f"{settings.dataset}.npz"
    dataset = archive.name if archive.is_file() else settings.dataset
    return replace(settings, dataset=dataset, data_dir=str(folder.resolve()))


def _was_lost(record: RoundRecord) -> bool:
    """Whether C2M3 failed on networks that it could have merged: it does not report an objective then.

    Clients that all diverged are another matter: it keeps the global network, and that is the result.
    """
    return record.train.get("c2m3-clients", 0) > 0 and "c2m3-objective" not in record.train


def _train(settings: SimulationSettings, clients: FirstRound) -> Mapping[str, Any]:
    grid = MeteredGrid(clients, settings.num_clients, settings.run_config())
    rounds = run(grid, settings).rounds
    lost = [each.round for each in rounds[1:] if settings.strategy.startswith("c2m3") and _was_lost(each)]
    if len(lost) == len(rounds) - 1:
        raise LostRoundError(f"Rounds {lost} of {settings.strategy} were lost; Flower's log says why.")
    return {
        "final": rounds[-1].server["accuracy"],
        "accuracy": [each.server["accuracy"] for each in rounds],
        "loss": [each.server["loss"] for each in rounds],
        "lost": lost,
        "train": [dict(each.train) for each in rounds],
        **{name: [vars(each)[name] for each in grid.rounds] for name in asdict(grid.rounds[0])},
    }


def _judge_clients(settings: SimulationSettings, clients: FirstRound) -> Mapping[str, Any]:
    settings = replace(settings, strategy="fedavg", compare="fedavg")
    grid = MeteredGrid(clients, settings.num_clients, settings.run_config())
    comparison = run(grid, settings).rounds[-1].comparison
    return {"accuracies": list(comparison["clients"]), "ensemble": comparison["ensemble"]}
