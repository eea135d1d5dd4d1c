"""Runs the cells of the benchmark and writes down each result as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from clients.client_app import app as client_app
from simulations.app.records import RoundRecord
from simulations.app.server_app import run
from simulations.app.settings import SimulationSettings
from simulations.experiments.federated.cells import Cell
from simulations.experiments.federated.metering import FirstRound, MeteredGrid
from simulations.experiments.federated.methods import METHODS
from simulations.laboratory.ledger import Ledger, Record

Compute = Callable[[], Mapping[str, Any]]

CLIENTS = "clients"
"""Name of the measurement of the clients' own networks, in cells of one round."""

# Where a run is made changes none of its figures, or is said by the record's hardware.
_ELSEWHERE = ("data-dir", "download", "output", "client-device", "server-device", "server-threads", "compare")


# To be raised when a default of the app changes, or what is measured: older measurements do not count any more then.
_VERSION = 1


class LostRoundError(RuntimeError):
    """A strategy could not aggregate in any round: its figures would be those of the network before."""


def _was_lost(record: RoundRecord) -> bool:
    """Whether C2M3 failed on networks that it could have merged: it does not report an objective then.

    Clients that all diverged are another matter: it keeps the global network, and that is the result.
    """
    return record.train.get("c2m3-clients", 0) > 0 and "c2m3-objective" not in record.train


class _UnknownError(Exception):
    """A measurement has not been made."""


def _unknown() -> Mapping[str, Any]:
    raise _UnknownError


def _plan(cell: Cell, seed: int) -> Iterator[tuple[str, SimulationSettings]]:
    """The measurements of one repetition."""
    settings = replace(cell.settings, seed=seed, num_clients=cell.num_clients)
    if settings.num_server_rounds == 1:
        yield CLIENTS, settings
    for name in cell.methods:
        yield name, replace(settings, **METHODS[name].overrides)


class Benchmark:
    """The benchmark at one scale.

    Parameters
    ----------
    ledger
        Where the measurements are, and are written to.
    data_dir
        Folder of the data sets, in torchvision's layout or as ``NAME.npz``.
    """

    def __init__(self, ledger: Ledger, data_dir: Path) -> None:
        self._ledger = ledger
        self._data_dir = data_dir

    def run(self, cells: Iterable[Cell], methods: Container[str] | None = None) -> None:
        """Measure what is not written down yet, of those methods or of all."""
        for cell in cells:
            for seed in cell.seeds:
                clients = FirstRound(client_app)  # shared by all methods of this repetition
                for method, settings in _plan(cell, seed):
                    if methods is not None and method not in methods:
                        continue
                    judge = self._judge_clients if method == CLIENTS else self._train
                    self._measure(cell, method, settings, partial(judge, settings, clients))

    def known(self, cells: Iterable[Cell]) -> list[Record]:
        """What is written down, in the order of the cells."""
        records = []
        for cell in cells:
            for seed in cell.seeds:
                for method, settings in _plan(cell, seed):
                    with suppress(_UnknownError):
                        records.append(self._measure(cell, method, settings, _unknown))
        return records

    def _measure(self, cell: Cell, method: str, settings: SimulationSettings, compute: Compute) -> Record:
        chosen, usual = settings.run_config(), SimulationSettings().run_config()
        # Only what differs from the defaults, so that a new option of the app invalidates nothing.
        depends: dict[str, Any] = {"version": _VERSION}
        if method in METHODS and METHODS[method].revision > 1:
            depends["revision"] = METHODS[method].revision
        if settings.fraction_train < 1:
            depends["sampling"] = "seeded"
        depends |= {key: value for key, value in chosen.items() if key not in _ELSEWHERE and value != usual[key]}
        return self._ledger.measure({"cell": cell.name, "method": method, "seed": settings.seed}, depends, compute)

    def _here(self, settings: SimulationSettings) -> SimulationSettings:
        archive = self._data_dir / f"{settings.dataset}.npz"
        dataset = archive.name if archive.is_file() else settings.dataset
        return replace(settings, dataset=dataset, data_dir=str(self._data_dir))

    def _train(self, settings: SimulationSettings, clients: FirstRound) -> Mapping[str, Any]:
        settings = self._here(settings)
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

    def _judge_clients(self, settings: SimulationSettings, clients: FirstRound) -> Mapping[str, Any]:
        settings = replace(self._here(settings), strategy="fedavg", compare="fedavg")
        grid = MeteredGrid(clients, settings.num_clients, settings.run_config())
        comparison = run(grid, settings).rounds[-1].comparison
        return {"accuracies": list(comparison["clients"]), "ensemble": comparison["ensemble"]}
