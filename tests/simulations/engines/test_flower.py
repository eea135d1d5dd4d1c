"""Flower's real simulation engine: one run of the app as a user would start it, and one that fails."""

import json
import os
from pathlib import Path

import pytest

from simulations.app.settings import SimulationSettings
from simulations.engines.flower import EngineError, SimulationEngine

APP = Path(__file__).parents[3]
ROUNDS, CLIENTS = 3, 3
SETTINGS = SimulationSettings(
    model_width=0.1,
    local_epochs=1,
    num_server_rounds=ROUNDS,
    initialisation="per-client",
    num_clients=CLIENTS,
    compare="fedavg,c2m3",
)


def test_flwr_run_trains_three_rounds_and_reports_a_run_that_fails(tmp_path: Path) -> None:
    output, lines = tmp_path / "run.json", list[str]()
    with SimulationEngine(APP, lines.append) as engine:
        superlink = engine.pid
        engine.run({**SETTINGS.run_config(), "output": str(output)}, num_clients=CLIENTS, timeout=300)
        with pytest.raises(EngineError, match=r"relative\.json"):
            engine.run({"output": "relative.json"}, num_clients=CLIENTS, timeout=300)
    record = json.loads(output.read_text())
    assert [each["round"] for each in record["rounds"]] == list(range(ROUNDS + 1))
    assert record["num_clients"] == CLIENTS
    assert all(each["train"]["c2m3-clients"] == CLIENTS for each in record["rounds"][1:])
    assert any("[ROUND 3/3]" in line for line in lines)
    table = next(number for number, line in enumerate(lines) if "strategies on the same replies" in line)
    last = record["rounds"][-1]["comparison"]["merged"]
    assert lines[table + 1 + ROUNDS].split()[-2:] == [f"{100 * last[name]:.1f}" for name in ("fedavg", "c2m3")]
    with pytest.raises(ProcessLookupError):
        os.kill(superlink, 0)


def test_an_app_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with SimulationEngine(tmp_path) as engine, pytest.raises(EngineError, match="flwr run failed"):
        engine.run({}, num_clients=1)
