"""The examples run, in this process, and show what their pages say."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from simulations.engines.grid import InProcessGrid

EXAMPLES = Path(__file__).parents[2] / "examples"
APPS = ("quickstart", "tabular", "lora")
Sides = tuple[ModuleType, ModuleType]
"""The server's and the client's module of an app."""


@pytest.fixture
def modules(request: pytest.FixtureRequest) -> Iterator[Sides]:
    """The server's and the client's module of the app that the test's parameter names."""
    folder = str(EXAMPLES / request.param)
    sys.path.insert(0, folder)
    try:
        yield tuple(importlib.import_module(f"{request.param}.{side}") for side in ("server_app", "client_app"))
    finally:
        sys.path.remove(folder)
        for name in [name for name in sys.modules if name.split(".")[0] == request.param]:
            del sys.modules[name]


def config(app: str, **changed: Any) -> dict[str, Any]:
    found = tomllib.loads((EXAMPLES / app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    changes = {key.replace("_", "-"): value for key, value in changed.items()}
    assert changes.keys() <= found.keys()
    return found | changes


def accuracies(sides: Sides, settings: dict[str, Any], printed: pytest.CaptureFixture[str]) -> list[float]:
    """Test accuracy by round, in per cent, as the app prints it; five clients."""
    server, client = sides
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=settings)
    server.app(InProcessGrid(client.app, 5, settings), context)
    line = re.findall(r"test accuracy by round: (.*)", printed.readouterr().out)[-1]
    return [float(each.rstrip("%")) for each in line.split()]


def with_fedavg(server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.serverapp.strategy import FedAvg  # noqa: PLC0415

    monkeypatch.setattr(server, "C2M3", lambda module, calibration, **options: FedAvg(**options))


@pytest.mark.parametrize("modules", ["quickstart"], indirect=True)
def test_quickstart_from_a_common_start(modules: Sides, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracies(modules, config("quickstart"), capsys)[-1] > 90


@pytest.mark.parametrize("modules", ["quickstart"], indirect=True)
def test_quickstart_from_own_starts_beats_fedavg(
    modules: Sides, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("quickstart", own_start=True, num_server_rounds=1)
    ours = accuracies(modules, settings, capsys)[-1]
    with_fedavg(modules[0], monkeypatch)
    theirs = accuracies(modules, settings, capsys)[-1]
    assert ours > 75
    assert theirs < 45


def test_quickstart_changes_one_line_of_the_template() -> None:
    """Of the server, besides its import; and nothing of the client."""
    server = (EXAMPLES / "quickstart/quickstart/server_app.py").read_text()
    assert len(re.findall(r"C2M3\(", server)) == 1
    assert "c2m3" not in (EXAMPLES / "quickstart/quickstart/client_app.py").read_text().lower()


@pytest.mark.parametrize("modules", ["tabular"], indirect=True)
def test_tabular_from_own_starts_beats_fedavg(modules: Sides, capsys: pytest.CaptureFixture[str]) -> None:
    ours = accuracies(modules, config("tabular", num_server_rounds=1), capsys)
    theirs = accuracies(modules, config("tabular", num_server_rounds=1, strategy="fedavg"), capsys)
    assert ours[-1] > 90
    assert ours[-1] > theirs[-1]


@pytest.mark.parametrize("modules", ["lora"], indirect=True)
def test_lora_federates_the_adapters_alone(
    modules: Sides, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: set[str] = set()
    server, client = modules
    monkeypatch.setattr(server, "evaluate", partial(_watch, server.evaluate, sent))
    by_round = accuracies(modules, config("lora"), capsys)
    assert by_round[-1] > 70
    assert by_round[0] < 60
    assert sent == set(client.adapters(client.build()))


def _watch(evaluate: Any, sent: set[str], server_round: int, arrays: Any) -> Any:
    sent |= set(arrays)
    return evaluate(server_round, arrays)


@pytest.mark.parametrize("app", APPS)
def test_run_configs_are_all_used(app: str) -> None:
    source = "".join(path.read_text() for path in (EXAMPLES / app / app).glob("*.py"))
    assert all(f'run_config["{key}"]' in source for key in config(app))


def test_merging_checkpoints(tmp_path: Path) -> None:
    """The page's own commands, in a copy of the folder."""
    page = (EXAMPLES / "merge_checkpoints/README.md").read_text()
    block = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[0]
    shutil.copytree(EXAMPLES / "merge_checkpoints", tmp_path / "examples/merge_checkpoints")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    environment["PYTHONPATH"] = str(EXAMPLES.parent)
    done = subprocess.run(
        ["bash", "-e", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {name: float(value) for value, name in re.findall(r"^ *([\d.]+)%  (.*)$", done.stdout, re.MULTILINE)}
    assert found["merged.safetensors"] > min(found["a.safetensors"], found["b.safetensors"]) - 2
    assert found["merged.safetensors"] > found["plain average of the first two"] + 5
    assert (tmp_path / "examples/merge_checkpoints/barrier.png").exists()
