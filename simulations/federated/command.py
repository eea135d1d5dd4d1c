"""``python -m simulations federated``: runs the benchmark against Flower's strategies and writes its page."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from clients.training import choose_device
from simulations.federated.benchmark import Benchmark
from simulations.federated.cells import SCALES
from simulations.paper.endpoints import hardware
from simulations.paper.ledger import Ledger


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations federated", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="smoke", help="how large (default: %(default)s)")
    parser.add_argument("--cells", default="", help="only cells whose name contains this")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of the measurements")
    options = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    cells = [cell for cell in SCALES[options.scale]() if options.cells in cell.name]
    if not cells:
        parser.error(f"no cell of {options.scale} has {options.cells!r} in its name")
    ledger = Ledger(options.results / f"federated-{options.scale}.jsonl", hardware(choose_device("auto")))
    Benchmark(ledger, options.data_dir.resolve()).run(cells)
