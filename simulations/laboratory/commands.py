"""What ``python -m simulations`` offers for the paper: each experiment, all of them, the endpoints, and the page."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from simulations.laboratory import report
from simulations.laboratory.registry import EXPERIMENTS
from simulations.laboratory.runner import main_of, open_laboratory, parser, run


def run_all(arguments: Sequence[str]) -> None:
    """Run every experiment; networks whose data are not there are named and left out."""
    options = parser("paper", "All experiments of the paper, one after the other.").parse_args(arguments)
    for experiment in EXPERIMENTS:
        run(experiment, options)


def train_endpoints(arguments: Sequence[str]) -> None:
    """Train endpoints ahead of the experiments, in several processes where the machine has room for them."""
    command = parser("endpoints", "Train the networks that experiments merge, several at a time.")
    command.add_argument("--seeds", type=_seeds, default=range(5), help="FIRST-LAST, of each kind (default: 0-4)")
    command.add_argument("--jobs", type=int, default=1, help="processes; on a GPU small networks share it (default: 1)")
    command.add_argument("--width", type=float, default=0.0, help="instead of the scale's own width")
    command.add_argument("--share", default="0/1", help="I/N: only every N-th network, from the I-th on")
    options = command.parse_args(arguments)
    if options.jobs > 1:
        _in_processes(arguments, options.jobs)
        return
    first, step = map(int, options.share.split("/"))
    laboratory = open_laboratory(options)
    scale = laboratory.scale
    configs = [scale.networks[name] for name in laboratory.chosen(tuple(scale.networks))]
    if options.width:
        configs = [scale.at_width(name, options.width) for name in laboratory.chosen(tuple(scale.networks))]
    wanted = [config.with_seed(seed) for config in configs for seed in options.seeds]
    for config in wanted[first::step]:
        laboratory.store.get(config)


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _in_processes(arguments: Sequence[str], jobs: int) -> None:
    base = [sys.executable, "-m", "simulations", "endpoints", *arguments, "--jobs", "1"]
    running = [subprocess.Popen([*base, "--share", f"{job}/{jobs}"]) for job in range(jobs)]
    if failed := [process.args for process in running if process.wait() != 0]:
        raise SystemExit(f"{len(failed)} of {jobs} processes failed; run again to go on with what is missing")


def write_report(arguments: Sequence[str]) -> None:
    """Make the results page from the results on disk."""
    options = report.parser().parse_args(arguments)
    report.build(EXPERIMENTS, options.results, options.page)
    print(f"{options.page} and {options.page.with_suffix('.html')}")


COMMANDS: Mapping[str, Callable[[list[str]], None]] = {
    **{experiment.name: partial(main_of, experiment) for experiment in EXPERIMENTS},
    "paper": run_all,
    "endpoints": train_endpoints,
    "report": write_report,
}
"""By name."""
