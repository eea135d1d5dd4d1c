"""``python -m simulations NAME``: run an experiment by name."""

from __future__ import annotations

import argparse
import importlib
import sys

_MODULES = {
    "counts": "simulations.experiments.matching.counts",
    "demo": "simulations.demo",
    "deploy": "simulations.engines.deployment",
    "server-data": "simulations.experiments.server_data.one_round",
    "hub": "simulations.app.hub",
    "run": "simulations.engines.command",
}
"""What has options of its own, by name: modules with a function `main`, each imported only when it is asked for."""


def main(arguments: list[str]) -> None:
    """Run the experiment that the command line names; what follows the name is the experiment's own."""
    if arguments and arguments[0] in _MODULES:
        importlib.import_module(_MODULES[arguments[0]]).main(arguments[1:])
        return
    from simulations.laboratory.command import COMMANDS  # noqa: PLC0415 - brings in all experiments

    parser = argparse.ArgumentParser(prog="python -m simulations", description="Experiments with C2M3 under Flower.")
    parser.add_argument("experiment", choices=sorted((*_MODULES, *COMMANDS)))
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the experiment's own options; see NAME --help")
    chosen = parser.parse_args(arguments)
    COMMANDS[chosen.experiment](chosen.options)


if __name__ == "__main__":
    main(sys.argv[1:])
