from __future__ import annotations

import pytest

from simulations.app.records import RoundRecord
from simulations.app.settings import SimulationSettings
from simulations.app.table import comparison_table
from simulations.engines.command import main
from simulations.engines.flower import EngineError
from simulations.engines.grid import simulate


def test_a_run_that_compares_prints_what_it_promises(
    caplog: pytest.LogCaptureFixture, flower_log: pytest.LogCaptureFixture
) -> None:
    settings = SimulationSettings(
        compare="fedavg,c2m3", initialisation="per-client", num_server_rounds=1, train_size=200, model_width=0.1
    )
    record = simulate(settings, num_clients=3)
    merged = record.rounds[1].comparison["merged"]
    line = next(line for line in flower_log.messages if line.startswith("    1  "))
    assert [float(each) for each in line.split()[3:]] == [round(100 * merged[name], 1) for name in ("fedavg", "c2m3")]


def test_a_strategy_without_a_result_is_said_to_have_none() -> None:
    comparison = {"clients_mean": 0.5, "ensemble": 0.6, "merged": {"c2m3": 0.7, "krum": 0.1}}
    lost = {**comparison, "merged": {"c2m3": 0.2}}
    rounds = [
        RoundRecord(round=0, server={}),
        RoundRecord(1, {}, comparison=comparison),
        RoundRecord(2, {}, comparison=lost),
    ]
    lines = list(comparison_table(rounds))
    assert lines[1].split() == ["round", "clients", "ensemble", "c2m3", "krum"]
    assert lines[2].split() == ["1", "50.0", "60.0", "70.0", "10.0"]
    assert lines[3].split() == ["2", "50.0", "60.0", "20.0", "none"]
    assert list(comparison_table(rounds[:1])) == []


@pytest.mark.parametrize("setting", ["no-such-key=1", "guard=yes", "num-server-rounds=x", "compare", "compare=fedprox"])
def test_a_wrong_run_config_ends_before_flower_starts(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([setting])
    assert ended.value.code == 2
    assert setting.split("=", maxsplit=1)[0] in capsys.readouterr().err


class _Failing:
    def __init__(self, *_arguments: object, **_options: object) -> None: ...
    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *_arguments: object) -> None: ...
    def run(self, config: dict[str, object], **_options: object) -> None:
        assert config == {"guard": False, "learning-rate": 1.0, "seed": 3, "compare": "fedavg,c2m3"}
        raise EngineError("The run ended as 'finished:failed'.")


def test_a_run_that_fails_is_exit_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("simulations.engines.command.SimulationEngine", _Failing)
    with pytest.raises(SystemExit) as ended:
        main(["guard=false", "learning-rate=1", "seed=3", "compare=fedavg,c2m3"])
    assert ended.value.code == 1
    assert "finished:failed" in capsys.readouterr().err
