"""``flwr run`` from Python: Flower's real engine, in a place of its own.

Flower has no supported call for this, and its command line has habits that a program must work around (flwr 1.41):

- the SuperLink which it starts in the background outlives it, on a fixed port, and keeps the folder and the environment
  of whoever came first, so that later runs may execute stale code. Here each engine has its own SuperLink, home folder
  and port, starts in an empty folder, and is stopped by its process id;
- ``flwr run --stream`` returns 0 even if the run failed, so the status is asked for;
- each run would install the app's dependencies anew, which is switched off.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from simulations.engines.processes import descendants, kill, unwinding

BIN = Path(sys.executable).parent
SUPERLINK = "engine"
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 15.0
_POLL_S = 3.0
_LOG_TAIL = 4000
_FINISHED = "finished:"
_COMPLETED = "finished:completed"

Listener = Callable[[str], None]


class EngineError(RuntimeError):
    """Flower could not be started, or a run failed."""


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _toml(value: Any) -> str:
    """A run config's value in TOML; JSON's strings, numbers and booleans are written alike there."""
    return json.dumps(value)


class Engine(ABC):
    """A SuperLink of one's own, to run one Flower app after another.

    A context manager: the SuperLink runs inside the ``with`` block.

    Parameters
    ----------
    app
        Folder of the Flower app.
    on_log
        Called with each line of a run's log as it comes, from another thread.

    Raises
    ------
    EngineError
        If the SuperLink does not start.
    """

    def __init__(self, app: Path, on_log: Listener = lambda line: None) -> None:
        self._app = app.resolve()
        self._on_log = on_log

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(unwinding())
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="c2m3-engine-"))
            self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)  # keys lie there, too
            self._begin()
            self._stack.callback(self._stop)
        except BaseException:
            self._stack.close()
            raise
        return self

    def _begin(self) -> None:
        """Start the SuperLink and wait for it."""
        self._home, self._cwd = self._folder / "home", self._folder / "cwd"
        self._home.mkdir()
        self._cwd.mkdir()
        self._log = self._folder / "superlink.log"
        port = free_port()
        self._prepare(port)
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{SUPERLINK}"\n\n'
            f'[superlink.{SUPERLINK}]\naddress = "127.0.0.1:{port}"\n{self._security()}\n',
            encoding="utf-8",
        )
        self._environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }
        with self._log.open("wb") as output:
            self._superlink = subprocess.Popen(
                [
                    str(BIN / "flower-superlink"),
                    *self._superlink_options(),
                    *("--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)),
                    "--disable-runtime-dependency-installation",
                ],
                cwd=self._cwd,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._await_port(port)
        except BaseException:
            self._stop()
            raise

    @abstractmethod
    def _superlink_options(self) -> list[str]:
        """Options of the SuperLink beyond its address."""

    @abstractmethod
    def _security(self) -> str:
        """What the configuration of ``flwr`` says on the connection's security, in TOML."""

    def _prepare(self, port: int) -> None:  # noqa: B027 (there may be nothing to do)
        """Make what the SuperLink needs, before it starts on that port."""

    @property
    def pid(self) -> int:
        """Process id of the SuperLink."""
        return self._superlink.pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _await_port(self, port: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._superlink.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.2)
            else:
                return
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
        raise EngineError(f"Flower's SuperLink did not start on port {port}. Its log ends:\n{tail}")

    def _stop(self) -> None:
        """End the SuperLink, and what it started: of a run that was interrupted, Ray and its workers would live on."""
        family = descendants(self._superlink.pid)
        try:
            self._superlink.terminate()
            self._superlink.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._superlink.kill()
        finally:  # also for those who press Ctrl-C twice
            kill(family)
            self._superlink.wait()

    def _run(self, run_config: Mapping[str, Any], timeout: float, *options: str) -> None:
        """Run the app to its end, with options of ``flwr run``."""
        overrides = self._folder / "run-config.toml"
        overrides.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in run_config.items()))
        answer = self._flwr(
            *("run", str(self._app), SUPERLINK, *options),
            *("--run-config", str(overrides), "--format", "json"),
        )
        started = _json(answer)
        if not started.get("run-id"):
            raise EngineError(f"flwr run failed:\n{answer}")
        run_id = str(started["run-id"])
        with self._following(run_id):
            status = self._await_end(run_id, time.monotonic() + timeout)
        if status != _COMPLETED:
            log = self._flwr("log", run_id, SUPERLINK, "--show")[-_LOG_TAIL:]
            raise EngineError(f"The run ended as {status!r}. Its log ends:\n{log}")

    def _await_end(self, run_id: str, deadline: float) -> str:
        while time.monotonic() < deadline:
            status = str(
                _json(self._flwr("list", SUPERLINK, "--run-id", run_id, "--format", "json"))["runs"][0]["status"]
            )
            if status.startswith(_FINISHED):
                return status
            time.sleep(_POLL_S)
        self._flwr("stop", run_id, SUPERLINK)
        raise EngineError("The run did not end in time and was stopped.")

    @contextmanager
    def _following(self, run_id: str) -> Iterator[None]:
        """Inside the block, the run's log is passed on line by line."""

        def pump(stream: IO[str]) -> None:
            for line in stream:
                self._on_log(line.rstrip("\n"))

        with subprocess.Popen(
            [str(BIN / "flwr"), "log", run_id, SUPERLINK, "--stream"],
            cwd=self._cwd,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            reader = threading.Thread(target=pump, args=(process.stdout,), daemon=True)
            reader.start()
            try:
                yield
            finally:
                process.terminate()
                reader.join()

    def _flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            cwd=self._cwd,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise EngineError(f"flwr {arguments[0]} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


class SimulationEngine(Engine):
    """Runs apps with virtual clients, in Flower's simulation engine; see `Engine`."""

    def _superlink_options(self) -> list[str]:
        return ["--insecure", "--simulation"]

    def _security(self) -> str:
        return "insecure = true"

    def run(
        self, run_config: Mapping[str, Any], *, num_clients: int, cpus_per_client: int = 1, timeout: float = 600.0
    ) -> None:
        """Run the app to its end.

        Parameters
        ----------
        run_config
            Overrides of the app's run config.
        num_clients
            Number of virtual clients.
        cpus_per_client
            As many clients run at once as the machine's processors allow.
        timeout
            Seconds after which the run is given up.

        Raises
        ------
        EngineError
            If the run cannot be started, fails, or does not end in time.
        """
        federation = f"num-supernodes={num_clients} client-resources-num-cpus={cpus_per_client}"
        self._run(run_config, timeout, "--federation-config", federation)


def _json(output: str) -> dict[str, Any]:
    """The JSON object in a command's output."""
    try:
        value: dict[str, Any] = json.loads(output[output.index("{") : output.rindex("}") + 1])
    except ValueError as error:
        raise EngineError(f"flwr answered what is not JSON:\n{output}") from error
    return value
