"""The demonstration: five clients that never shared a starting point, merged by FedAvg and by C2M3.

Each client trains its own random network on its share of 1,797 real handwritten digits, in Flower's simulation engine.
Their networks agree on nothing but their architecture, so that averaging them weight by weight destroys them. C2M3
aligns their neurons first. Both get the same networks, and both results are judged on the same test digits.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.app.records import write_json
from simulations.app.settings import SimulationSettings
from simulations.engines.flower import SimulationEngine

_APP = Path(__file__).resolve().parent.parent
_CLIENTS = 5
_SETTINGS = SimulationSettings(
    initialisation="per-client",
    local_epochs=30,
    validation_fraction=0.0,
    num_server_rounds=1,
    num_clients=_CLIENTS,
    strategy="c2m3",
    repair="repair",  # the paper's; nobody trains on from the result
    compare="fedavg,c2m3-align,c2m3",
    guard=False,  # each row shows its own method, not the best of several
    server_threads=1,  # threads that wait for each other on a busy machine cost more than they bring
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PROGRESS = {
    "Starting Flower Simulation": "Flower's simulation engine starts",
    "configure_train": f"{_CLIENTS} clients train, each from its own random network",
    "aggregate_train: Received": "the server merges the networks it got",
    "Strategy execution finished": "merged",
}


@dataclass(frozen=True)
class DemoResult:
    """Accuracies on the test digits, in [0, 1], in the order of the table."""

    clients_mean: float
    fedavg: float
    c2m3: float
    c2m3_repair: float
    ensemble: float

    @classmethod
    def read(cls, comparison: dict[str, Any]) -> DemoResult:
        """From a round's record of `simulations.app.records`."""
        merged = comparison["merged"]
        return cls(
            clients_mean=comparison["clients_mean"],
            fedavg=merged["fedavg"],
            c2m3=merged["c2m3-align"],
            c2m3_repair=merged["c2m3"],
            ensemble=comparison["ensemble"],
        )

    def rows(self) -> tuple[tuple[str, float], ...]:
        """Labels and accuracies, for people."""
        return (
            (f"{_CLIENTS} clients, mean of their own networks", self.clients_mean),
            ("FedAvg: one network, averaged", self.fedavg),
            ("C2M3: one network, aligned and averaged", self.c2m3),
            ("C2M3 + REPAIR: and activations repaired", self.c2m3_repair),
            (f"ensemble: all {_CLIENTS} networks (ceiling)", self.ensemble),
        )

    def table(self) -> str:
        """The accuracies as a table."""
        width = max(len(label) for label, _ in self.rows())
        lines = [f"{'test accuracy':>{width + 10}}", "-" * (width + 10)]
        lines += [f"{label:<{width}}  {100 * value:6.1f} %" for label, value in self.rows()]
        return "\n".join(lines)


class _Progress:
    """Says on the terminal how far a run is, from its log."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"[{time.perf_counter() - self._start:5.1f} s] {text}", flush=True)

    def listen(self, line: str) -> None:
        """Take a line of the run's log."""
        plain = _COLOUR.sub("", line)
        if "WARNING" in plain or "ERROR" in plain:
            if "aggregate_train" in plain:
                self.say(plain)
            return
        for mark, text in _PROGRESS.items():
            if mark in plain and mark not in self._said:
                self._said.add(mark)
                self.say(text)


def _plot(result: DemoResult, path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 (slow to import, and not needed to read the table)

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    labels = [label.replace(": ", "\n").replace(", mean", "\nmean") for label, _ in result.rows()]
    values = [100 * value for _, value in result.rows()]
    colours = ["#9aa0a6", "#d9534f", "#5b9bd5", "#1f5fa8", "#9aa0a6"]
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    bars = axes.barh(labels, values, color=colours)
    axes.bar_label(bars, fmt="%.1f %%", padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xlabel("accuracy on the test digits (%)")
    axes.set_title(f"{_CLIENTS} clients, each from its own initialisation, merged after one round", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(folder: Path, settings: SimulationSettings = _SETTINGS) -> DemoResult:
    """Run the demonstration, print its table, and write ``demo.json`` and ``demo.png`` into `folder`."""
    progress = _Progress()
    start = time.perf_counter()
    progress.say("Flower's SuperLink starts")
    with tempfile.TemporaryDirectory(prefix="c2m3-demo-") as scratch:
        output = Path(scratch) / "run.json"
        with SimulationEngine(_APP, progress.listen) as engine:
            engine.run({**settings.run_config(), "output": str(output)}, num_clients=_CLIENTS)
        record = json.loads(output.read_text(encoding="utf-8"))
    comparison = record["rounds"][-1]["comparison"]
    result = DemoResult.read(comparison)
    seconds = time.perf_counter() - start
    write_json(
        folder / "demo.json",
        {
            **vars(result),
            "clients": comparison["clients"],
            "seed": settings.seed,
            "seconds": seconds,
            "diagnostics": record["rounds"][-1]["train"],
            "environment": record["environment"],
            "settings": record["settings"],
        },
    )
    _plot(result, folder / "demo.png")
    print(f"\n{result.table()}\n\nIn {seconds:.0f} s. Written: {folder / 'demo.json'}, {folder / 'demo.png'}")
    return result


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for demo.json and demo.png")
    run(parser.parse_args(arguments).output)


if __name__ == "__main__":
    main(sys.argv[1:])
