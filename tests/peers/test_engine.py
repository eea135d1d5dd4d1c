"""Two of the peers in Flower's simulation engine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from simulations.engines.flower import SimulationEngine
from tests.peers.peers import CLIENTS, PEERS, run
from tests.peers.test_peers import losses

ROOT = Path(__file__).parents[2]

_PROJECT = """
[project]
name = "peers"
version = "1.0.0"
description = "What Flower's examples federate."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "c2m3-fl"

[tool.flwr.app.components]
serverapp = "peers.server:app"
clientapp = "peers.client:app"

[tool.flwr.app.config]
example = ""
strategy = ""
output = ""
"""

_SERVER = """
import json
from pathlib import Path

from flwr.serverapp import ServerApp

from tests.peers.peers import PEERS, initial, sent, strategy
from tests.peers.test_peers import losses

app = ServerApp()


@app.main()
def main(grid, context):
    peer = PEERS[context.run_config["example"]]
    chosen = strategy(peer, context.run_config["strategy"])
    result = chosen.start(grid, sent(peer, initial(peer)), num_rounds=1)
    found = {"arrays": list(result.arrays), "losses": losses(result)}
    Path(context.run_config["output"]).write_text(json.dumps(found))
"""

_CLIENT = """
from flwr.clientapp import ClientApp

from tests.peers.peers import PEERS, client_app

app = ClientApp()


@app.train()
def train(message, context):
    return client_app(PEERS[context.run_config["example"]], True)(message, context)


@app.evaluate()
def evaluate(message, context):
    return client_app(PEERS[context.run_config["example"]], True)(message, context)
"""


@pytest.mark.slow
def test_the_engine_gives_models_as_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "app" / "peers"
    package.mkdir(parents=True)
    (tmp_path / "app" / "pyproject.toml").write_text(_PROJECT)
    for name, text in (("__init__", ""), ("server", _SERVER), ("client", _CLIENT)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    output = tmp_path / "result.json"
    with SimulationEngine(tmp_path / "app") as engine:
        for example in ("quickstart-huggingface", "fedbn"):
            ahead = PEERS[example].ahead
            assert ahead is not None
            found = {}
            for strategy in ("fedavg", "c2m3"):
                engine.run({"example": example, "strategy": strategy, "output": str(output)}, num_clients=CLIENTS)
                found[strategy] = json.loads(output.read_text())
                here = run(example, strategy, True, 1)
                assert found[strategy]["arrays"] == list(here.arrays)
                # last bits differ between processes, and training makes much of them
                assert found[strategy]["losses"] == pytest.approx(losses(here), rel=0.3)
            assert found["c2m3"]["losses"][-1] < ahead * found["fedavg"]["losses"][-1]
