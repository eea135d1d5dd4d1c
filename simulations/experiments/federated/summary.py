"""What the measurements say, per cell and strategy, over the repetitions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.experiments.federated.benchmark import CLIENTS
from simulations.experiments.federated.federations import SCALES, Federation
from simulations.laboratory.ledger import Record

_MEGABYTE = 1e6
_REFERENCE = "fedavg"


@dataclass(frozen=True)
class Outcome:
    """One strategy in one cell.

    Attributes
    ----------
    method
        Name of the strategy.
    accuracy, loss
        Per repetition, by round from 0; on the test set.
    server_seconds
        Per repetition, mean over the rounds.
    megabytes
        Per round, both ways, all clients.
    """

    method: str
    accuracy: tuple[tuple[float, ...], ...]
    loss: tuple[tuple[float, ...], ...]
    server_seconds: tuple[float, ...]
    megabytes: float

    @classmethod
    def of(cls, method: str, records: Sequence[Record]) -> Outcome:
        """From the measurements of all repetitions."""
        values = [record.values for record in records]
        first = values[0]
        return cls(
            method=method,
            accuracy=tuple(tuple(each["accuracy"]) for each in values),
            # JSON has no infinity: a network that diverged has no loss.
            loss=tuple(tuple(math.inf if x is None else x for x in each["loss"]) for each in values),
            server_seconds=tuple(statistics.fmean(each["server_seconds"]) for each in values),
            megabytes=statistics.fmean(first["bytes_down"]) / _MEGABYTE
            + statistics.fmean(first["bytes_up"]) / _MEGABYTE,
        )

    @property
    def final(self) -> tuple[float, ...]:
        """Accuracy after the last round, per repetition."""
        return tuple(curve[-1] for curve in self.accuracy)

    def rounds_to(self, target: float) -> tuple[int | None, ...]:
        """The first round with that accuracy, per repetition; None where there was none."""
        return tuple(next((r for r, value in enumerate(curve) if value >= target), None) for curve in self.accuracy)


@dataclass(frozen=True)
class Peers:
    """The clients' own networks in a cell of one round, per repetition: mean, best, and their ensemble."""

    mean: tuple[float, ...]
    best: tuple[float, ...]
    ensemble: tuple[float, ...]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Peers:
        """From the measurements of all repetitions."""
        values: list[Mapping[str, Any]] = [record.values for record in records]
        return cls(
            mean=tuple(statistics.fmean(each["accuracies"]) for each in values),
            best=tuple(max(each["accuracies"]) for each in values),
            ensemble=tuple(each["ensemble"] for each in values),
        )


@dataclass(frozen=True)
class Result:
    """A cell with what came of it.

    Attributes
    ----------
    cell
        The federation.
    outcomes
        By name of the strategy.
    peers
        In cells of one round.
    seeds
        The repetitions.
    """

    cell: Federation
    outcomes: Mapping[str, Outcome]
    peers: Peers | None
    seeds: tuple[int, ...]


def summarise(records: Sequence[Record]) -> list[Result]:
    """The federations that have been measured: the seeds that FedAvg has, and the strategies that have them all."""
    known = {(r.about["cell"], r.about["method"], r.about["seed"]): r for r in records}
    results = []
    for cell in _planned({cell for cell, _, _ in known}):
        seeds = tuple(seed for seed in cell.seeds if (cell.name, _REFERENCE, seed) in known)
        of = {
            method: [known[cell.name, method, seed] for seed in seeds]
            for method in (*cell.methods, CLIENTS)
            if all((cell.name, method, seed) in known for seed in seeds)
        }
        once = cell.settings.num_server_rounds == 1
        if seeds and (CLIENTS in of or not once):  # what one round makes of clients is shown beside them
            outcomes = {method: Outcome.of(method, of[method]) for method in cell.methods if method in of}
            peers = Peers.of(of[CLIENTS]) if once else None
            results.append(Result(cell, outcomes, peers, seeds))
    return results


def _planned(names: Container[str]) -> list[Federation]:
    """The federations of the scale that has most of these names."""
    return max(
        ([each for each in make() if each.name in names] for make in SCALES.values()),
        key=len,
    )


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its standard error, NaN where there is only one pair."""

    mean: float
    error: float

    @classmethod
    def between(cls, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
        """Ours less theirs, repetition by repetition."""
        gains = [a - b for a, b in zip(ours, theirs, strict=True)]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        return cls(statistics.fmean(gains), error)

    @property
    def verdict(self) -> str:
        """Wins, loses, or ties, a difference within twice its standard error being noise."""
        if math.isnan(self.error):
            return "one seed"
        if abs(self.mean) <= 2 * self.error:
            return "ties"
        return "wins" if self.mean > 0 else "loses"
