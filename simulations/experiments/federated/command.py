"""``python -m simulations federated``: runs the benchmark against Flower's strategies and writes its page."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from clients.training import choose_device
from simulations.experiments.federated.benchmark import CLIENTS, Benchmark
from simulations.experiments.federated.cells import SCALES
from simulations.experiments.federated.methods import METHODS
from simulations.experiments.federated.report import write_page
from simulations.experiments.federated.summary import summarise
from simulations.laboratory.endpoints import hardware
from simulations.laboratory.ledger import Ledger


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations federated", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="smoke", help="how large (default: %(default)s)")
    parser.add_argument("--cells", default="", help="only cells whose name contains this")
    parser.add_argument("--methods", nargs="+", choices=(CLIENTS, *METHODS), help="only these strategies")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of the measurements")
    parser.add_argument("--page", type=Path, default=Path("docs/federated.md"), help="the page to put tables into")
    parser.add_argument("--report", action="store_true", help="measure nothing, only make the page")
    options = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    everything = list(SCALES[options.scale]())
    cells = [cell for cell in everything if options.cells in cell.name]
    if not cells:
        parser.error(f"no cell of {options.scale} has {options.cells!r} in its name")
    ledger = Ledger(options.results / f"federated-{options.scale}.jsonl", hardware(choose_device("auto")))
    benchmark = Benchmark(ledger, options.data_dir.resolve())
    if not options.report:
        benchmark.run(cells, options.methods)
    records = benchmark.known(everything)
    write_page(options.page, options.scale, summarise(everything, records), records)
    print(options.page)
