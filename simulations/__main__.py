"""``python -m simulations NAME``: run an experiment by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from simulations import demo, deployment, scale
from simulations.federated import command as federated
from simulations.paper.commands import COMMANDS

EXPERIMENTS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo.main,
    "deploy": deployment.main,
    "federated": federated.main,
    "scale": scale.main,
    **COMMANDS,
}


def main() -> None:
    """Run the experiment that the command line names; what follows the name is the experiment's own."""
    parser = argparse.ArgumentParser(prog="python -m simulations", description="Experiments with C2M3 under Flower.")
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the experiment's own options; see NAME --help")
    arguments = parser.parse_args()
    EXPERIMENTS[arguments.experiment](arguments.options)


if __name__ == "__main__":
    main()
