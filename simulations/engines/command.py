"""``python -m simulations run``: the app in Flower's simulation engine, with an exit status and nothing left behind.

``flwr run . --stream`` does the same by hand, but returns 0 where the run failed (flwr 1.41), installs the app's
dependencies anew for each run unless told not to, and leaves a SuperLink in the background.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from clients.settings import SettingsError
from simulations.app.settings import SimulationSettings
from simulations.engines.flower import EngineError, SimulationEngine

_APP = Path(__file__).parents[2]


def main(arguments: list[str]) -> None:
    """Run the app; exit status 1 if the run fails, 2 if the run config is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations run",
        description="Run the Flower app of this repository with virtual clients.",
        epilog="example: python -m simulations run --clients 5 compare=fedavg,c2m3 initialisation=per-client",
    )
    parser.add_argument("--clients", type=int, default=5, help="number of virtual clients (default: 5)")
    parser.add_argument(
        "--timeout", type=float, default=3600.0, help="seconds after which it is given up (default: 3600)"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the run config, see pyproject.toml")
    options = parser.parse_args(arguments)
    try:
        config = dict(_setting(each) for each in options.settings)
        SimulationSettings.parse(config, strict=True)
    except SettingsError as error:
        print(f"python -m simulations run: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        with SimulationEngine(_APP, on_log=lambda line: print(line, flush=True)) as engine:
            engine.run(config, num_clients=options.clients, timeout=options.timeout)
    except EngineError as error:
        print(f"python -m simulations run: {error}", file=sys.stderr)
        sys.exit(1)


def _setting(text: str) -> tuple[str, Any]:
    """A key and its value, of the type that the key's default has."""
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"{text!r} is no KEY=VALUE")
    kind = type(SimulationSettings().run_config().get(key, ""))
    if kind is bool:
        if value not in ("true", "false"):
            raise SettingsError(f"{key} is true or false, not {value!r}")
        return key, value == "true"
    try:
        return key, kind(value)
    except ValueError as error:
        raise SettingsError(f"{key} is of type {kind.__name__}, which {value!r} is not") from error
