"""``python -m simulations NAME``: one set of options for every experiment, and what else the laboratory does."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from c2m3_fl.device import resolve_device
from simulations.experiments.registry import EXPERIMENTS
from simulations.laboratory.endpoints import EndpointConfig, EndpointStore, hardware
from simulations.laboratory.experiment import Experiment
from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.ledger import Cell, Ledger
from simulations.laboratory.report import as_text, ledger_path, write_pages
from simulations.laboratory.scales import SCALES

_DOCS = Path("docs")


def parser(name: str, about: str) -> argparse.ArgumentParser:
    """The options that all of them share."""
    result = argparse.ArgumentParser(prog=f"python -m simulations {name}", description=about)
    result.add_argument("--scale", choices=sorted(SCALES), default="cpu", help="size of everything (default: cpu)")
    result.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the data sets")
    result.add_argument("--cache", type=Path, default=Path("cache"), help="folder of the trained networks")
    result.add_argument(
        "--output", type=Path, help="folder of the results (default: docs/results; at the scale smoke, in the cache)"
    )
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    result.add_argument("--threads", type=int, default=1, help="CPU threads of one operation (default: 1)")
    result.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only measurements about this, such as network=mlp-mnist; a key given again adds to its values",
    )
    return result


def open_laboratory(options: argparse.Namespace) -> Laboratory:
    """A laboratory as the command line asks for it."""
    torch.set_num_threads(options.threads)
    store = EndpointStore(options.cache / "endpoints", options.data_dir, resolve_device(options.device))
    return Laboratory(SCALES[options.scale](), store)


def results_folder(options: argparse.Namespace) -> Path:
    """Where results go: what is only a trial does not go into the documentation."""
    usual: Path = options.cache / "results" if options.scale == "smoke" else _DOCS / "results"
    return options.output or usual


def run(experiments: Sequence[Experiment], options: argparse.Namespace) -> None:
    """Measure what is not written down yet, or was by other code, and print what came out.

    Raises
    ------
    SystemExit
        If there is no such measurement, or if not one can be made for want of data.
    """
    laboratory, where = open_laboratory(options), hardware(resolve_device(options.device))
    missing: Counter[str] = Counter()
    asked = made = 0
    for experiment in experiments:
        ledger = Ledger(ledger_path(results_folder(options), experiment, options.scale))
        try:
            for cell in chosen(experiment.cells(laboratory), options.only):
                asked += 1
                if reasons := laboratory.missing(cell):
                    missing.update(reasons)
                    continue
                made += 1
                ledger.measure(cell, laboratory.depends(cell), where)
        finally:
            ledger.tidy()
        print(as_text(experiment, ledger.records(), laboratory))
    for reason, count in missing.items():
        print(f"{count} measurements are left out: {reason}", file=sys.stderr)
    if not asked:
        raise SystemExit(f"no measurement is about {' and '.join(options.only)}; {_about(experiments, laboratory)}")
    if not made:
        raise SystemExit("nothing can be measured without these data; --data-dir names their folder.")


def chosen(cells: Iterator[Cell], only: Sequence[str]) -> Iterator[Cell]:
    """The cells that ``--only`` leaves."""
    wanted: dict[str, set[str]] = {}
    for each in only:
        key, found, value = each.partition("=")
        if not found:
            raise SystemExit(f"--only takes KEY=VALUE, not {each!r}")
        wanted.setdefault(key, set()).add(value)
    return (cell for cell in cells if all(str(cell.about.get(key)) in values for key, values in wanted.items()))


def _about(experiments: Sequence[Experiment], laboratory: Laboratory) -> str:
    values: dict[str, dict[str, None]] = {}
    for experiment in experiments:
        for cell in experiment.cells(laboratory):
            for key, value in cell.about.items():
                values.setdefault(key, {})[str(value)] = None
    return "there are " + "; ".join(f"{key}: {', '.join(found)}" for key, found in values.items())


def _measure(experiment: Experiment, arguments: Sequence[str]) -> None:
    run([experiment], parser(experiment.name, experiment.about).parse_args(arguments))


def _measure_paper(arguments: Sequence[str]) -> None:
    options = parser("paper", "All experiments of the paper, one after the other.").parse_args(arguments)
    run([each for each in EXPERIMENTS if each.page == "results"], options)


def train_endpoints(arguments: Sequence[str]) -> None:
    """Train endpoints ahead of the experiments, in several processes where the machine has room for them."""
    command = parser("endpoints", "Train the networks that experiments merge; what was cut off goes on.")
    command.add_argument("--seeds", type=_seeds, default=range(5), help="FIRST-LAST, of each kind (default: 0-4)")
    command.add_argument("--jobs", type=int, default=1, help="processes; on a GPU small networks share it (default: 1)")
    command.add_argument("--share", default="0/1", help="I/N: only every N-th network, from the I-th on")
    options = command.parse_args(arguments)
    if options.jobs > 1:
        _in_processes(arguments, options.jobs)
        return
    first, step = map(int, options.share.split("/"))
    laboratory = open_laboratory(options)
    cells = [
        (_network_cell(name, config, seed), config.with_seed(seed))
        for name, config in laboratory.scale.networks.items()
        for seed in options.seeds
    ]
    kept = {id(cell) for cell in chosen((cell for cell, _ in cells), options.only)}
    wanted = [(cell, config) for cell, config in cells if id(cell) in kept]
    if not wanted:
        raise SystemExit(f"there is no such network; the networks are {', '.join(laboratory.scale.networks)}")
    absent = {reason: None for cell, _ in wanted for reason in laboratory.missing(cell)}
    for cell, config in wanted[first::step]:
        if not laboratory.missing(cell):
            laboratory.store.get(config)
    if absent:
        raise SystemExit("some networks were not trained: " + " ".join(absent))


def _network_cell(name: str, config: EndpointConfig, seed: int) -> Cell:
    return Cell({"network": name, "seed": seed}, {}, (config.dataset,), dict)


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _in_processes(arguments: Sequence[str], jobs: int) -> None:
    base = [sys.executable, "-m", "simulations", "endpoints", *arguments, "--jobs", "1"]
    running = [subprocess.Popen([*base, "--share", f"{job}/{jobs}"]) for job in range(jobs)]
    if failed := [process.args for process in running if process.wait() != 0]:
        raise SystemExit(f"{len(failed)} of {jobs} processes failed; run again to go on with what is missing")


def write_report(arguments: Sequence[str]) -> None:
    """Make the pages from the results on disk."""
    command = argparse.ArgumentParser(prog="python -m simulations report", description=write_report.__doc__)
    command.add_argument("--output", type=Path, default=_DOCS / "results", help="folder of the results")
    command.add_argument("--docs", type=Path, default=_DOCS, help="folder of the pages")
    options = command.parse_args(arguments)
    for page in write_pages(EXPERIMENTS, options.output, options.docs):
        print(page)


COMMANDS: Mapping[str, Callable[[list[str]], None]] = {
    **{experiment.name: partial(_measure, experiment) for experiment in EXPERIMENTS},
    "paper": _measure_paper,
    "endpoints": train_endpoints,
    "report": write_report,
}
"""By name."""
