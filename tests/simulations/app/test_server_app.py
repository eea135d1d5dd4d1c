"""The whole app, in process: every strategy runs, results are repeatable, and C2M3 does what FedAvg cannot."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.clientapp import ClientApp

from c2m3_fl import C2M3
from clients.data import load_data
from simulations.app.central import TestSet, calibration_inputs, global_model
from simulations.app.records import write_json
from simulations.app.server_app import NodesError, run
from simulations.app.settings import STRATEGIES, SimulationSettings
from simulations.app.strategies import build_strategy
from simulations.engines.grid import InProcessGrid, simulate

QUICK = SimulationSettings(model_width=0.1, local_epochs=1, num_server_rounds=2)
OWN_STARTS = SimulationSettings(
    model_width=0.25,
    local_epochs=30,
    num_server_rounds=1,
    initialisation="per-client",
    validation_fraction=0.0,
    compare="fedavg,c2m3-align,c2m3",
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_and_measures_every_round(strategy: str) -> None:
    record = simulate(replace(QUICK, strategy=strategy), 3)
    assert [each.round for each in record.rounds] == [0, 1, 2]
    for each in record.rounds:
        assert math.isfinite(each.server["loss"])
        assert 0 <= each.server["accuracy"] <= 1
    assert "train-loss" in record.rounds[1].train
    assert "eval-accuracy" in record.rounds[1].evaluate
    assert "client-id" not in {**record.rounds[1].train, **record.rounds[1].evaluate}


def test_training_raises_accuracy() -> None:
    settings = replace(QUICK, strategy="fedavg", model_width=0.5, local_epochs=5, num_server_rounds=3)
    assert simulate(settings, 3).accuracy > 0.8


def test_the_same_settings_give_the_same_figures() -> None:
    first, again = simulate(QUICK, 3), simulate(QUICK, 3)
    assert [each.server for each in first.rounds] == [each.server for each in again.rounds]
    assert first.rounds[1].server != simulate(replace(QUICK, seed=1), 3).rounds[1].server


@pytest.mark.parametrize("options", [{"robust": "exclude"}, {"group_size": 2}, {"moments_from": "clients"}])
def test_c2m3s_options_are_run_config_keys(options: dict[str, Any]) -> None:
    settings = replace(QUICK, **options)
    record = simulate(SimulationSettings.parse(settings.run_config(), strict=True), 3)
    assert all(math.isfinite(each.server["loss"]) for each in record.rounds)
    assert ("c2m3-measuring-clients" in record.rounds[1].train) == (settings.moments_from == "clients")
    strategy = build_strategy("c2m3", settings, num_clients=3, calibration=calibration_inputs(settings))
    assert isinstance(strategy, C2M3)
    given = (strategy.options.robust or "no", strategy.options.group_size or 0, strategy.moments_from)
    assert given == (settings.robust, settings.group_size, settings.moments_from)


def test_the_seed_draws_the_clients_of_a_round() -> None:
    partial = replace(QUICK, strategy="fedavg", fraction_train=0.3)
    random.seed(1)
    first = simulate(partial, 10)
    outside = random.random()
    again = simulate(partial, 10)
    assert [each.server for each in first.rounds] == [each.server for each in again.rounds]
    random.seed(1)
    assert outside == random.random()


def test_from_different_initialisations_averaging_fails_and_c2m3_does_not() -> None:
    comparison = simulate(OWN_STARTS, 5).rounds[1].comparison
    merged = comparison["merged"]
    assert comparison["clients_mean"] > 0.85
    assert merged["fedavg"] < 0.4
    assert merged["c2m3"] > comparison["clients_mean"] - 0.05
    assert comparison["ensemble"] >= comparison["clients_mean"]


def test_comparing_does_not_change_the_run() -> None:
    alone = simulate(replace(QUICK, strategy="fedavg"), 3)
    watched = simulate(replace(QUICK, strategy="fedavg", compare="fedmedian,fedavg"), 3)
    assert [each.server for each in watched.rounds] == [each.server for each in alone.rounds]
    assert watched.rounds[2].comparison["merged"]["fedavg"] == watched.rounds[2].server["accuracy"]


def test_every_compared_strategy_gets_the_same_replies() -> None:
    names = ("fedmedian", "fedtrimmedavg", "krum", "fedavg")
    settings = replace(QUICK, num_server_rounds=1)
    together = simulate(replace(settings, strategy="fedmedian", compare=",".join(names)), 3).rounds[1].comparison
    alone = {name: simulate(replace(settings, strategy=name), 3).accuracy for name in names}
    assert together["merged"] == alone


def test_a_network_with_batch_norm_runs() -> None:
    settings = replace(QUICK, model="resnet20", model_norm="batch", num_server_rounds=1)
    assert math.isfinite(simulate(settings, 2).rounds[1].server["loss"])


def test_without_calibration_data_c2m3_still_aligns() -> None:
    record = simulate(replace(QUICK, calibration_size=0, num_server_rounds=1), 2)
    assert record.rounds[1].train["c2m3-clients"] == 2
    assert record.rounds[1].train["c2m3-repair-seconds"] == 0


def test_part_of_the_clients_can_be_sampled() -> None:
    record = simulate(replace(QUICK, strategy="c2m3", fraction_train=0.5, num_server_rounds=1), 4)
    assert record.rounds[1].train["c2m3-clients"] == 2


def test_too_few_nodes_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.app.server_app._PATIENCE_S", 0.0)
    with pytest.raises(NodesError, match="num-supernodes=3"):
        run(InProcessGrid(ClientApp(), 2, {}), replace(QUICK, num_clients=3))


def test_the_record_is_written_as_json(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "run.json"
    record = simulate(replace(QUICK, strategy="fedavg", num_server_rounds=1, output=str(output)), 2)
    written = json.loads(output.read_text())
    assert written["rounds"][1]["server"]["accuracy"] == record.accuracy
    assert written["settings"]["strategy"] == "fedavg"
    assert SimulationSettings.parse(written["settings"], strict=True).num_clients == 2
    assert "torch" in written["environment"]["packages"]
    assert [path.name for path in output.parent.iterdir()] == ["run.json"]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": 2}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1.0, None], "c": {"d": 2}}


def test_the_ensemble_averages_probabilities_and_the_network_may_be_reused() -> None:
    settings = SimulationSettings(model_width=0.1)
    test_set = TestSet(settings, "cpu")
    first = global_model(settings).state_dict()
    second = global_model(replace(settings, seed=1)).state_dict()
    scores, ensemble = test_set.score_clients([first, second])
    assert scores[0] == test_set.score(first)
    assert scores[1] == test_set.score(second)
    model, inputs = global_model(settings).eval(), load_data("digits").test.inputs()
    with torch.no_grad():
        probabilities = []
        for each in (first, second):
            model.load_state_dict(each)
            probabilities.append(model(inputs).exp())
    mean = torch.stack(probabilities).mean(dim=0)
    expected = (mean.argmax(dim=1) == load_data("digits").test.labels).double().mean()
    assert ensemble.accuracy == pytest.approx(float(expected))


def test_calibration_inputs_are_as_many_as_asked_for() -> None:
    inputs = calibration_inputs(SimulationSettings(calibration_size=17))
    assert inputs is not None
    assert inputs.shape == (17, 1, 8, 8)
    assert calibration_inputs(SimulationSettings(calibration_size=0)) is None
