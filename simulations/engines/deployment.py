"""A real deployment on this machine: SuperLink and SuperNodes over TLS, nodes that prove who they are, and one that dies.

Keys and certificates are made on the fly and forgotten. Every node gets a key pair; the SuperLink refuses nodes whose
public key was not registered. In the second round one node is killed while it works. Everything is ended by process id.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulations.app.settings import SimulationSettings
from simulations.engines.credentials import LOOPBACK, Credentials, Identity
from simulations.engines.flower import BIN, SUPERLINK, Engine, EngineError, Listener, free_port
from simulations.engines.processes import descendants, kill

_APP = Path(__file__).resolve().parents[2]
_NODE_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.2
_REFUSED = "Failed to activate SuperNode"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_KILL_IN_ROUND = 2
_SETTINGS = SimulationSettings(
    initialisation="per-client",
    local_epochs=30,
    num_server_rounds=3,
    validation_fraction=0.0,
    min_clients=2,
)


class Deployment(Engine):
    """A SuperLink with TLS and node authentication, and its SuperNodes; see `Engine`.

    A context manager. `start_nodes` comes first, then `run`.

    Parameters
    ----------
    app
        Folder of the Flower app.
    num_nodes
        Number of SuperNodes; node i has ``partition-id=i``.
    on_log
        Called with each line of a run's log as it comes, from another thread.
    """

    def __init__(self, app: Path, num_nodes: int, on_log: Listener = lambda line: None) -> None:
        super().__init__(app, on_log)
        self._num_nodes = num_nodes
        self._nodes: list[subprocess.Popen[bytes]] = []

    def _prepare(self, port: int) -> None:
        folder = self._folder / "credentials"
        folder.mkdir(mode=0o700)
        self._credentials = Credentials(folder)
        self._server = self._credentials.server()
        self._address = f"{LOOPBACK}:{port}"

    def _superlink_options(self) -> list[str]:
        return [
            *("--ssl-ca-certfile", str(self._credentials.authority)),
            *("--ssl-certfile", str(self._server.public), "--ssl-keyfile", str(self._server.private)),
            "--enable-supernode-auth",
        ]

    def _security(self) -> str:
        return f"root-certificates = {json.dumps(str(self._credentials.authority))}"

    def start_nodes(self) -> None:
        """Register every node's public key, and start the nodes."""
        for number in range(self._num_nodes):
            identity = self._credentials.node(number)
            self._flwr("supernode", "register", str(identity.public), SUPERLINK, "--name", f"node-{number}")
            self._nodes.append(
                self._start_node(number, identity, ["--root-certificates", str(self._credentials.authority)])
            )

    def start_stranger(self) -> str:
        """Start a node whose key is not registered; return why it ended, in its own words."""
        number = self._num_nodes
        security = ["--root-certificates", str(self._credentials.authority), "--max-retries", "3"]
        node = self._start_node(number, self._credentials.node(number), security)
        try:
            node.wait(_NODE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise EngineError("A node that was not registered has not been turned away.") from None
        finally:
            _end(node)
        lines = self.node_log(number).read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if _REFUSED in line), ["", *lines][-1])

    def _start_node(self, number: int, identity: Identity, security: list[str]) -> subprocess.Popen[bytes]:
        partition = f"partition-id={number} num-partitions={self._num_nodes}"
        with self.node_log(number).open("wb") as output:
            return subprocess.Popen(
                [
                    str(BIN / "flower-supernode"),
                    *("--superlink", self._address, "--host", LOOPBACK, "--port", str(free_port())),
                    *("--auth-supernode-private-key", str(identity.private)),
                    *("--node-config", partition),
                    *security,
                ],
                cwd=self._cwd,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def node_log(self, number: int) -> Path:
        """Where a node logs."""
        return self._folder / f"node-{number}.log"

    def working(self, number: int) -> bool:
        """Whether a node has a process that runs the ClientApp."""
        return any("flwr-clientapp" in _command(pid) for pid in descendants(self._nodes[number].pid))

    def kill_node(self, number: int) -> list[int]:
        """Kill a node and all that it has started, as a power cut would; return their process ids."""
        node = self._nodes[number]
        family = [node.pid, *descendants(node.pid)]
        kill(family)
        node.wait()
        return family

    def run(self, run_config: Mapping[str, Any], *, timeout: float = 1800.0) -> None:
        """Run the app to its end.

        Parameters
        ----------
        run_config
            Overrides of the app's run config.
        timeout
            Seconds after which the run is given up.

        Raises
        ------
        EngineError
            If the run cannot be started, fails, or does not end in time.
        """
        self._run(run_config, timeout)

    def _stop(self) -> None:
        for node in self._nodes:
            _end(node)
        super()._stop()


def _end(node: subprocess.Popen[bytes]) -> None:
    """End a node and what it has started, unless it has ended by itself."""
    if node.poll() is not None:
        return
    family = descendants(node.pid)
    node.terminate()
    with suppress(subprocess.TimeoutExpired):
        node.wait(_STOP_TIMEOUT_S)
    kill(family)
    node.kill()
    node.wait()


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    return ""


class _Log:
    """Writes down what happens and when, in a file and on the terminal."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self._start = time.perf_counter()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        line = f"[{time.perf_counter() - self._start:6.1f} s] {_COLOUR.sub('', text).rstrip()}"
        with self._lock:
            print(line, flush=True)
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Saboteur:
    """Kills a node in the middle of a round, when it works on its message.

    Parameters
    ----------
    log
        Where to tell.
    number
        Of the node.
    """

    def __init__(self, log: _Log, number: int) -> None:
        self._log = log
        self._number = number
        self._waiting: threading.Thread | None = None

    def listen(self, deployment: Deployment, line: str) -> None:
        """Take a line of the run's log."""
        if f"[ROUND {_KILL_IN_ROUND}/" in line and self._waiting is None:
            self._waiting = threading.Thread(target=self._strike, args=(deployment,), daemon=True)
            self._waiting.start()

    def _strike(self, deployment: Deployment) -> None:
        deadline = time.monotonic() + _NODE_TIMEOUT_S
        while not deployment.working(self._number) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        pids = deployment.kill_node(self._number)
        self._log.say(f"*** node-{self._number} killed while it works (processes {', '.join(map(str, pids))})")


def demonstrate(folder: Path, *, num_nodes: int = 3, settings: SimulationSettings = _SETTINGS) -> dict[str, Any]:
    """Deploy, turn away a stranger, train, kill a node, go on; write ``deployment.log`` and ``deployment.json``.

    Parameters
    ----------
    folder
        Where the files go.
    num_nodes
        SuperNodes; the last one is killed.
    settings
        The run config, but for the number of clients and the output.

    Returns
    -------
    dict
        The record of the run, as in ``deployment.json``.
    """
    output = folder.resolve() / "deployment.json"
    log = _Log(folder / "deployment.log")
    saboteur = _Saboteur(log, num_nodes - 1)

    def listen(line: str) -> None:
        log.say(line)
        saboteur.listen(deployment, line)

    deployment = Deployment(_APP, num_nodes, listen)
    with deployment:
        log.say(f"*** SuperLink {deployment.pid} answers over TLS and wants nodes to authenticate")
        deployment.start_nodes()
        log.say(f"*** {num_nodes} SuperNodes registered and started")
        log.say(f"*** a node whose key was not registered ends: {deployment.start_stranger()}")
        deployment.run(replace(settings, num_clients=num_nodes, output=str(output)).run_config())
    log.say("*** all processes have ended")
    log.close()
    record: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return record


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations deploy", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, help="number of SuperNodes (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for deployment.log and .json")
    options = parser.parse_args(arguments)
    record = demonstrate(options.output, num_nodes=options.nodes)
    for each in record["rounds"]:
        merged = each["train"].get("c2m3-clients", "-")
        print(f"round {each['round']}: {merged} clients merged, test accuracy {100 * each['server']['accuracy']:.1f} %")
