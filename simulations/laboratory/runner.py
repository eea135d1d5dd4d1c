"""The common runner: ``python -m simulations NAME --scale SCALE`` measures an experiment and writes its results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from c2m3_fl.device import resolve_device
from simulations.laboratory.endpoints import EndpointStore
from simulations.laboratory.experiment import Experiment
from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.results import write_results
from simulations.laboratory.scales import SCALES, Scale

DEFAULT_CACHE = Path("cache")
DEFAULT_RESULTS = Path("docs/results")


def parser(name: str, about: str) -> argparse.ArgumentParser:
    """The options that all experiments share."""
    result = argparse.ArgumentParser(prog=f"python -m simulations {name}", description=about)
    result.add_argument("--scale", choices=sorted(SCALES), default="cpu", help="size of everything (default: cpu)")
    result.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the data sets")
    result.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of endpoints and measurements")
    result.add_argument("--output", type=Path, default=DEFAULT_RESULTS, help="folder for the results")
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    result.add_argument("--threads", type=int, default=1, help="CPU threads of one operation (default: 1)")
    result.add_argument(
        "--network", action="append", help="only this network, such as mlp-mnist; may be repeated (default: all)"
    )
    return result


def open_laboratory(options: argparse.Namespace) -> Laboratory:
    """A laboratory as the command line asks for it."""
    torch.set_num_threads(options.threads)
    scale: Scale = SCALES[options.scale]()
    unknown = sorted(set(options.network or ()) - set(scale.networks))
    if unknown:
        raise SystemExit(f"there is no network {', '.join(unknown)}; the networks are {', '.join(scale.networks)}")
    device = resolve_device(options.device)
    store = EndpointStore(options.cache / "endpoints", options.data_dir, device)
    return Laboratory(scale, store, options.cache / "measurements" / scale.name, options.network)


def run(experiment: Experiment, options: argparse.Namespace) -> None:
    """Measure, and write the results."""
    laboratory = open_laboratory(options)
    ledger = laboratory.ledger(experiment.name)
    try:
        experiment.measure(laboratory, ledger)
    finally:
        # What an interrupted run has measured is worth showing too.
        if ledger.records():
            path = write_results(options.output, experiment, laboratory, ledger.records())
            print(f"{experiment.title}: {path}")


def main_of(experiment: Experiment, arguments: Sequence[str]) -> None:
    """Run from the command line."""
    run(experiment, parser(experiment.name, experiment.about).parse_args(arguments))
