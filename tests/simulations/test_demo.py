"""What the demonstration says and writes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from simulations import demo
from simulations.app.records import write_json
from simulations.app.settings import SimulationSettings

COMPARISON = {
    "clients": [0.9, 0.8],
    "clients_mean": 0.85,
    "ensemble": 0.95,
    "merged": {"fedavg": 0.1, "c2m3-align": 0.88, "c2m3": 0.91},
}


class EngineStub:
    """Writes the record of a run without running it."""

    def __init__(self, app: Path, on_log: Any) -> None:
        assert (app / "pyproject.toml").is_file()
        self.on_log = on_log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, run_config: Mapping[str, Any], *, num_clients: int) -> None:
        settings = SimulationSettings.parse(run_config, strict=True)
        assert settings.num_clients == num_clients
        self.on_log("\x1b[92mINFO\x1b[0m: aggregate_train: Received 5 results")
        record = {"settings": dict(run_config), "environment": {}, "rounds": [{"comparison": COMPARISON, "train": {}}]}
        write_json(Path(settings.output), record)


def test_it_writes_every_figure_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SimulationEngine", EngineStub)
    demo.main(["--output", str(tmp_path / "results")])
    written = json.loads((tmp_path / "results" / "demo.json").read_text())
    expected = {"clients_mean": 0.85, "fedavg": 0.1, "c2m3": 0.88, "c2m3_repair": 0.91, "ensemble": 0.95}
    assert {key: written[key] for key in expected} == expected
    assert written["seed"] == 0
    assert math.isfinite(written["seconds"])
    assert (tmp_path / "results" / "demo.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for figure in ("85.0 %", "10.0 %", "88.0 %", "91.0 %", "95.0 %", "the server merges"):
        assert figure in printed
