"""The benchmark against Flower's strategies: equal conditions, honest meters, resumable, a page of what was measured."""

import math
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian

from simulations.app.settings import STRATEGIES, SimulationSettings
from simulations.experiments.federated.benchmark import Benchmark, LostRoundError
from simulations.experiments.federated.cells import SCALES, Cell
from simulations.experiments.federated.command import main
from simulations.experiments.federated.metering import FirstRound, MeteredGrid
from simulations.experiments.federated.methods import METHODS
from simulations.experiments.federated.summary import Difference, Outcome
from simulations.laboratory.ledger import Ledger, Record

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


def test_a_lost_round_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ArithmeticError("on purpose")

    monkeypatch.setattr("c2m3_fl.federation.strategy.aggregate", fail)
    cell = Cell("lost", "shared", 2, QUICK, ("c2m3",), (0,), 0.5)
    ledger = Ledger(tmp_path / "lost.jsonl", "here")
    with pytest.raises(LostRoundError, match=r"Rounds \[1, 2\] of c2m3"):
        Benchmark(ledger, tmp_path).run([cell])
    assert Benchmark(ledger, tmp_path).known([cell]) == []


def test_the_command_measures_once_and_keeps_the_words_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "federated.md"
    page.write_text("# Title\n\nOur advice.\n\n<!-- begin smoke -->\nold\n<!-- end smoke -->\n\nMore words.\n")
    arguments = ["--scale", "smoke", "--results", str(tmp_path / "results"), "--page", str(page)]
    main(arguments)
    first, measured = page.read_text(), capsys.readouterr().out
    assert "Our advice." in first
    assert "More words." in first
    assert "old" not in first
    assert "C2M3 + REPAIR" in first
    assert (tmp_path / "figures" / "federated-smoke.png").read_bytes().startswith(b"\x89PNG")
    assert measured.count("federated-smoke: ") == len(
        (tmp_path / "results" / "federated-smoke.jsonl").read_text().splitlines()
    )
    main(arguments)
    assert "federated-smoke: " not in capsys.readouterr().out
    assert page.read_text() == first


def test_a_page_can_be_made_before_c2m3_has_been_measured(tmp_path: Path) -> None:
    page = tmp_path / "federated.md"
    arguments = ["--scale", "smoke", "--results", str(tmp_path / "results"), "--page", str(page)]
    main([*arguments, "--cells", "one-shot", "--methods", "clients", "fedavg"])
    assert "C2M3 + REPAIR" not in page.read_text()
    assert "| FedAvg |" in page.read_text()


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
    return Record({}, values, 0.0, "", "")


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
