"""The benchmark against Flower's strategies: equal conditions, honest meters, resumable, a page of what was measured."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian

from clients.data import load_data
from simulations.app.settings import STRATEGIES, SimulationSettings
from simulations.engines.grid import simulate
from simulations.experiments.federated import benchmark, experiment
from simulations.experiments.federated.federations import SCALES, Federation
from simulations.experiments.federated.metering import FirstRound, MeteredGrid
from simulations.experiments.federated.methods import METHODS
from simulations.experiments.federated.summary import Difference, Outcome
from simulations.laboratory.endpoints import EndpointStore
from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.ledger import Record, select
from simulations.laboratory.scales import SCALES as LABORATORY_SCALES

QUICK = SimulationSettings(model_width=0.1, local_epochs=1, num_server_rounds=2, validation_fraction=0.0)
NAP_S = 0.2


class Counting:
    """A client that counts how often it trained, takes its time and sends one array of 40 bytes."""

    def __init__(self) -> None:
        self.trained: list[int] = []

    def __call__(self, message: Message, context: Context) -> Message:
        time.sleep(NAP_S)
        self.trained.append(cast(int, cast(ConfigRecord, message.content["config"])["server-round"]))
        arrays = cast(ArrayRecord, message.content["arrays"]).to_numpy_ndarrays()
        content = {
            "arrays": ArrayRecord([array + 1 for array in arrays]),
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(content), reply_to=message)


def ten_floats() -> ArrayRecord:
    return ArrayRecord([np.zeros(10, dtype=np.float32)])


def test_strategies_share_the_first_rounds_training_and_no_other() -> None:
    client = Counting()
    remembering = FirstRound(client)
    results = []
    for strategy in (FedMedian(fraction_evaluate=0.0), FedAvg(fraction_evaluate=0.0), FedAvg(fraction_evaluate=0.0)):
        grid = MeteredGrid(remembering, 2, {})
        results.append(strategy.start(grid, ten_floats(), num_rounds=2).arrays.to_numpy_ndarrays()[0])
    assert client.trained == [1, 1, 2, 2, 2, 2, 2, 2]
    assert all((result == 2).all() for result in results)


def test_the_meter_counts_arrays_both_ways_and_not_the_clients_time() -> None:
    grid = MeteredGrid(Counting(), 2, {})

    class Slow(FedAvg):
        def aggregate_train(self, *arguments: Any) -> Any:
            time.sleep(3 * NAP_S)
            return super().aggregate_train(*arguments)

    Slow(fraction_evaluate=0.0).start(grid, ten_floats(), num_rounds=2)
    size = ten_floats().count_bytes()
    assert size >= 40
    assert [(each.bytes_down, each.bytes_up) for each in grid.rounds] == [(2 * size, 2 * size)] * 2
    assert all(3 * NAP_S <= each.server_seconds < 5 * NAP_S for each in grid.rounds)


TWO = Federation("two", "many-rounds", 2, QUICK, ("fedavg", "fedprox", "c2m3"), (0, 1), 0.5)
ONCE = Federation("once", "one-shot", 3, replace(QUICK, num_server_rounds=1), ("fedavg", "c2m3"), (0,), 0.5)


@pytest.fixture
def federations(monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    monkeypatch.setitem(SCALES, "smoke", lambda: iter((TWO, ONCE)))
    return Laboratory(LABORATORY_SCALES["smoke"](), EndpointStore(Path(), Path(), torch.device("cpu")))


def test_a_lost_round_is_no_result(federations: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ArithmeticError("on purpose")

    monkeypatch.setattr("c2m3_fl.merger.Merger.rehearse", lambda _: None)
    monkeypatch.setattr("c2m3_fl.merger.Merger.merge", fail)
    cell = next(cell for cell in benchmark.cells(federations) if cell.about["method"] == "c2m3")
    with pytest.raises(benchmark.LostRoundError, match=r"Rounds \[1, 2\] of c2m3"):
        cell.measure()


@pytest.fixture(scope="module")
def measured() -> list[Record]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "smoke", lambda: iter((TWO, ONCE)))
        lab = Laboratory(LABORATORY_SCALES["smoke"](), EndpointStore(Path(), Path(), torch.device("cpu")))
        return [Record(c.about, c.measure(), 1.0, "here", c.depends) for c in benchmark.cells(lab)]


def test_each_cell_is_the_run_of_its_own_strategy_and_seed(measured: list[Record]) -> None:
    assert [tuple(r.about.values()) for r in measured] == [
        *(("two", method, seed) for seed in (0, 1) for method in ("fedavg", "fedprox", "c2m3")),
        *(("once", method, 0) for method in ("clients", "fedavg", "c2m3")),
    ]
    for record in select(measured, cell="two"):
        strategy = str(record.about["method"])
        settings = replace(QUICK, strategy=strategy, seed=record.about["seed"], num_clients=2)
        rounds = simulate(settings, num_clients=2).rounds
        assert record.values["accuracy"] == [each.server["accuracy"] for each in rounds]
        assert record.values["final"] == rounds[-1].server["accuracy"]
        assert record.values["loss"] == [each.server["loss"] for each in rounds]
        assert len(record.values["server_seconds"]) == QUICK.num_server_rounds


def test_networks_are_judged_on_the_whole_test_set(measured: list[Record]) -> None:
    images = len(load_data("digits").test)
    for value in (v for r in select(measured, cell="two") for v in r.values["accuracy"]):
        assert value * images == pytest.approx(round(value * images))
    (peers,) = select(measured, method="clients")
    assert len(peers.values["accuracies"]) == ONCE.num_clients
    assert max(peers.values["accuracies"]) <= 1


def test_tables_and_curves_show_all_strategies(measured: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "smoke", lambda: iter((TWO, ONCE)))
    one_shot, never_worse, every = experiment.tables(measured)
    assert len(one_shot.rows) == 1
    assert [row[1] for row in never_worse.rows] == [METHODS["c2m3"].label]
    assert [row[1] for row in every.rows] == [METHODS[method].label for method in TWO.methods]
    (picture,) = experiment.pictures(measured)
    assert picture.name == "federated"
    without = [r for r in measured if r.about["method"] in ("clients", "fedavg")]
    assert "C2M3 + REPAIR, guard" not in str(list(experiment.tables(without)))


@pytest.mark.parametrize("scale", SCALES)
def test_cells_have_names_of_their_own_and_known_methods(scale: str) -> None:
    cells = list(SCALES[scale]())
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert set(cell.methods) <= set(METHODS)
        assert "fedavg" in cell.methods
    assert {method.overrides["strategy"] for method in METHODS.values()} <= set(STRATEGIES)


def record_of(accuracy: list[float], loss: list[float | None]) -> Record:
    rounds = len(accuracy) - 1
    values = {
        "accuracy": accuracy,
        "loss": loss,
        "server_seconds": [1.0] * rounds,
        "bytes_down": [2_000_000] * rounds,
        "bytes_up": [1_000_000] * rounds,
    }
    return Record({}, values, 0.0, "", {})


def test_rounds_to_a_target_count_from_one_and_may_be_none() -> None:
    outcome = Outcome.of(
        "fedavg", [record_of([0.1, 0.5, 0.4], [2.0, 1.0, None]), record_of([0.1, 0.2, 0.3], [1.0] * 3)]
    )
    assert outcome.rounds_to(0.5) == (1, None)
    assert outcome.final == (0.4, 0.3)
    assert outcome.loss[0][-1] == math.inf
    assert outcome.megabytes == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [((0.9, 0.91, 0.92), "wins"), ((0.7, 0.71, 0.72), "loses"), ((0.9, 0.7, 0.8), "ties"), ((0.8, 0.8, 0.8), "ties")],
)
def test_a_difference_within_twice_its_standard_error_is_a_tie(ours: tuple[float, ...], verdict: str) -> None:
    assert Difference.between(ours, (0.8, 0.8, 0.8)).verdict == verdict
    assert Difference.between(ours[:1], (0.8,)).verdict == "one seed"
