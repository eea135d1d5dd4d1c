"""The Flower ServerApp: builds what the run config asks for, runs it, writes down what came of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from logging import INFO
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from c2m3_fl import C2M3
from clients.training import deterministic
from simulations.app.central import TestSet, calibration_inputs, global_model
from simulations.app.records import RoundRecord, RunRecord, write_json
from simulations.app.resuming import claim
from simulations.app.settings import SimulationSettings
from simulations.app.strategies import Comparison, SideBySide, build_strategy
from simulations.app.table import comparison_table

_PATIENCE_S = 120.0

app = ServerApp()


class NodesError(RuntimeError):
    """The federation has fewer nodes than the run config asks for."""


def _count_clients(grid: Grid, wanted: int) -> int:
    """Number of clients; waits until there are `wanted`, or at least one where that is 0."""
    deadline = time.monotonic() + _PATIENCE_S
    while (there := len(list(grid.get_node_ids()))) < max(1, wanted):
        if time.monotonic() > deadline:
            raise NodesError(
                f"num-clients={wanted}, but only {there} nodes have come. A simulation is given its nodes by "
                f'`flwr run --federation-config "num-supernodes={wanted}"`.'
            )
        time.sleep(1)
    return wanted or there


def _evaluation(test_set: TestSet) -> Callable[[int, ArrayRecord], MetricRecord]:
    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        result = test_set.score(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": result.accuracy, "loss": result.loss})

    return evaluate


def _rounds(result: Result, comparisons: dict[int, Comparison], done: int) -> tuple[RoundRecord, ...]:
    def comparison(number: int) -> dict[str, object]:
        if number not in comparisons:
            return {}
        return {**asdict(comparisons[number]), "clients_mean": comparisons[number].clients_mean}

    return tuple(
        RoundRecord(
            round=done + number,
            server=dict(metrics),
            train=dict(result.train_metrics_clientapp.get(number, {})),
            evaluate=dict(result.evaluate_metrics_clientapp.get(number, {})),
            comparison=comparison(number),
        )
        for number, metrics in sorted(result.evaluate_metrics_serverapp.items())
    )


def run(grid: Grid, settings: SimulationSettings) -> RunRecord:
    """Train over all rounds, and write the record to ``settings.output`` if that is set.

    Parameters
    ----------
    grid
        The way to the clients.
    settings
        The run config.

    Returns
    -------
    RunRecord
        Every round's figures; of a run that was resumed, those of the last round before and of all since.

    Raises
    ------
    SettingsError
        If ``settings.checkpoint`` holds another run.
    NodesError
        If the clients do not come.
    """
    before = random.getstate()
    random.seed(settings.seed)  # by which Flower draws the clients of a round
    try:
        with deterministic(settings.seed, settings.server_threads or None):
            record = _run(grid, settings)
    finally:
        random.setstate(before)
    for line in comparison_table(record.rounds):
        log(INFO, "%s", line)
    if settings.output:
        write_json(Path(settings.output), record.to_dict())
        log(INFO, "Wrote %s", settings.output)
    return record


def _run(grid: Grid, settings: SimulationSettings) -> RunRecord:
    start = time.perf_counter()
    checkpoint = claim(settings)
    num_clients = _count_clients(grid, settings.num_clients)
    build = partial(
        build_strategy, settings=settings, num_clients=num_clients, calibration=calibration_inputs(settings)
    )
    leader = build(settings.strategy, checkpoint=checkpoint)
    strategies = {name: build(name) for name in settings.compared} | {settings.strategy: leader}
    test_set = TestSet(settings, settings.server_device)
    side_by_side = SideBySide(settings.strategy, strategies, settings.compared, test_set)
    strategy = side_by_side if settings.compared else leader
    arrays, done = ArrayRecord(global_model(settings).state_dict()), 0
    if isinstance(leader, C2M3) and checkpoint is not None:
        arrays, done = leader.resume(arrays)
    result = strategy.start(
        grid,
        arrays,
        num_rounds=settings.num_server_rounds - done,
        evaluate_fn=_evaluation(test_set),
    )
    return RunRecord(
        settings=settings.run_config(),
        num_clients=num_clients,
        rounds=_rounds(result, side_by_side.comparisons, done),
        seconds=time.perf_counter() - start,
    )


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry point."""
    run(grid, SimulationSettings.parse(context.run_config, strict=True))
