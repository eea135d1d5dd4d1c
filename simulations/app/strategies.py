"""Strategies by name, and several of them side by side on the same replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    Strategy,
)
from torch import Tensor

from c2m3_fl import C2M3, PermutationSpec
from c2m3_fl.federation import private
from c2m3_fl.federation.strategy import MomentsFrom
from c2m3_fl.options import Repair
from c2m3_fl.predictions import TaskName
from c2m3_fl.robust import Robust
from clients.data import load_data
from simulations.app.central import TestSet, global_model
from simulations.app.settings import SimulationSettings


def _mean_metrics(replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """The weighted mean of what the clients measured; their ids are no measurement."""
    metrics = private.mean_metrics(replies, weighted_by_key)
    metrics.pop("client-id", None)
    return metrics


def _sampling(settings: SimulationSettings, num_clients: int) -> dict[str, Any]:
    """FedAvg's own options: a round waits for enough clients, and takes the fraction of them that was asked for."""
    least = settings.min_clients or num_clients
    evaluate = settings.fraction_evaluate if settings.validation_fraction > 0 else 0.0
    return {
        "fraction_train": settings.fraction_train,
        "fraction_evaluate": evaluate,
        "min_train_nodes": max(1, int(least * settings.fraction_train)),
        "min_evaluate_nodes": max(1, int(least * evaluate)),
        "min_available_nodes": least,
        "train_metrics_aggr_fn": _mean_metrics,
        "evaluate_metrics_aggr_fn": _mean_metrics,
    }


def _given(option: str, value: float) -> dict[str, Any]:
    """The option, unless its value is 0, which stands for the strategy's own default."""
    return {option: value} if value else {}


def _c2m3(
    settings: SimulationSettings,
    calibration: Tensor | None,
    sampling: Mapping[str, Any],
    checkpoint: Path | None,
    *,
    repair: Repair | None,
    server_momentum: float = 0.0,
) -> C2M3:
    network = global_model(settings)
    shape = load_data(settings.dataset, settings.data_dir, settings.download).input_shape
    # Any input shows the permutation groups, so that a server without data can align.
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(settings.seed))
    return C2M3(
        module=network,
        calibration=calibration,
        spec=PermutationSpec.from_module(network, example),
        matcher=settings.matcher,
        repair=repair,
        activations=settings.activations,
        guard=settings.guard,
        robust=None if settings.robust == "no" else cast(Robust, settings.robust),
        group_size=settings.group_size or None,
        task=None if settings.task == "auto" else cast(TaskName, settings.task),
        moments_from=cast(MomentsFrom, settings.moments_from),
        server_momentum=server_momentum,
        checkpoint=checkpoint,
        device=settings.server_device,
        **sampling,
    )


def build_strategy(
    name: str,
    settings: SimulationSettings,
    *,
    num_clients: int,
    calibration: Tensor | None,
    checkpoint: Path | None = None,
) -> Strategy:
    """The strategy of that name.

    Parameters
    ----------
    name
        One of `simulations.app.settings.STRATEGIES`.
    settings
        Options of the strategies, fractions of clients, and the network.
    num_clients
        Number of clients there are.
    calibration
        Inputs for REPAIR; None leaves it out.
    checkpoint
        File in which C2M3 writes each round.

    Raises
    ------
    ValueError
        If there is no such strategy.
    """
    sampling = _sampling(settings, num_clients)
    c2m3 = partial(_c2m3, settings, calibration, sampling, checkpoint)
    factories: dict[str, Callable[[], Strategy]] = {
        "c2m3": partial(c2m3, repair=cast(Repair, settings.repair)),
        "c2m3-align": partial(c2m3, repair=None),
        "c2m3-momentum": partial(c2m3, repair=cast(Repair, settings.repair), server_momentum=settings.server_momentum),
        "fedavg": partial(FedAvg, **sampling),
        "fedprox": partial(FedProx, proximal_mu=settings.proximal_mu, **sampling),
        "fedavgm": partial(
            FedAvgM,
            **_given("server_learning_rate", settings.server_learning_rate),
            server_momentum=settings.server_momentum,
            **sampling,
        ),
        "fedadam": partial(FedAdam, **_given("eta", settings.server_learning_rate), **sampling),
        "fedyogi": partial(FedYogi, **_given("eta", settings.server_learning_rate), **sampling),
        "fedmedian": partial(FedMedian, **sampling),
        "fedtrimmedavg": partial(FedTrimmedAvg, beta=settings.trim_fraction, **sampling),
        "krum": partial(Krum, num_malicious_nodes=settings.malicious_clients, **sampling),
    }
    if name not in factories:
        raise ValueError(f"There is no strategy {name!r}. Choose one of {', '.join(factories)}.")
    return factories[name]()


@dataclass(frozen=True)
class Comparison:
    """Test accuracies of one round: the clients' networks, their ensemble, and what each strategy made of them."""

    clients: tuple[float, ...]
    ensemble: float
    merged: Mapping[str, float]

    @property
    def clients_mean(self) -> float:
        """Mean accuracy of the clients' own networks."""
        return sum(self.clients) / len(self.clients)


class SideBySide(Strategy):
    """Lets several strategies aggregate the same replies, and judges each result on the test set.

    Parameters
    ----------
    leader
        Name of the strategy that drives the run: its result is broadcast.
    strategies
        The leader, and strategies that only look on. The results of those must follow from the replies alone.
    compared
        Names of the strategies to judge.
    test_set
        The judge.
    """

    def __init__(
        self, leader: str, strategies: Mapping[str, Strategy], compared: Sequence[str], test_set: TestSet
    ) -> None:
        self._leader = strategies[leader]
        self._compared = {name: strategies[name] for name in compared}
        self._test_set = test_set
        self.comparisons: dict[int, Comparison] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the leader does."""
        return self._leader.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate by every strategy; the leader's result is returned."""
        replies = list(replies)
        valid = [reply for reply in replies if not reply.has_error()]
        # Copies for each: FedMedian empties the records that it reads. The arrays' bytes are shared.
        result = self._leader.aggregate_train(server_round, deepcopy(replies))
        if not valid:
            return result
        state_dicts = [
            next(iter(reply.content.array_records.values())).to_torch_state_dict()
            for reply in sorted(valid, key=_client_id)
        ]
        clients, ensemble = self._test_set.score_clients(state_dicts)
        merged = {}
        for name, strategy in self._compared.items():
            leads = strategy is self._leader
            arrays, _ = result if leads else strategy.aggregate_train(server_round, deepcopy(replies))
            if arrays is not None:
                merged[name] = self._test_set.score(arrays.to_torch_state_dict()).accuracy
        self.comparisons[server_round] = Comparison(
            clients=tuple(each.accuracy for each in clients), ensemble=ensemble.accuracy, merged=merged
        )
        return result

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the leader does."""
        return self._leader.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the leader does."""
        return self._leader.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the leader does."""
        self._leader.summary()


def _client_id(reply: Message) -> float:
    return cast(float, next(iter(reply.content.metric_records.values()))["client-id"])
