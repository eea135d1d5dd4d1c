"""Matchers side by side on trained networks: objective, merged accuracy, time, memory.

Run ``python -m benchmarks matching --data FOLDER``, on Linux: results go to ``docs/results/matching.json``, beside
those that are there, a summary to ``docs/matching.md``, all cases to ``docs/matching-cases.md`` and figures to
``docs/figures/matching-*.png``. With ``--device cuda`` the same is measured there, under names of its own; ``--profile``
prints what a case's time goes to. The objective is the sum over pairs p < q of the mapped networks' inner products, all
parameters included.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.endpoints import Family, perceptron_size
from benchmarks.limit import Limit, measured_limit
from c2m3_fl.matching import (
    BlockFrankWolfe,
    CoordinateAscent,
    FrankWolfe,
    GitReBasin,
    Identity,
    Matcher,
    Matching,
    MatchingProblem,
    MergeMany,
    PairwiseFrankWolfe,
    UniverseMatcher,
)
from c2m3_fl.matching.problem import as_client_maps
from simulations.app.records import Environment
from simulations.experiments.paper.pair_sum import PairSumFrankWolfe
from simulations.laboratory.endpoints import hardware
from simulations.laboratory.pages import replace_block

_CPU = torch.device("cpu")
DOCS = Path(__file__).parents[1] / "docs"
PAIR_SUM = "pair-sum"
_PROFILED = 20  # operations in a profile
_SIZED_CLIENTS = 5  # in the figure of widths and depths
_REPETITIONS = 3  # of a case with its bare cost, in turn: on a busy machine only neighbours in time compare


@dataclass(frozen=True)
class ThenAscent:
    """A matcher, and coordinate ascent from its result."""

    first: Matcher

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        matching = self.first.match(problem)
        ascended = CoordinateAscent().improve(problem, matching.permutations)
        return Matching(ascended.permutations, matching.iterations + ascended.iterations)


MATCHERS: dict[str, Callable[[], Matcher]] = {
    "identity": Identity,
    "default": UniverseMatcher,
    "effort-0": lambda: UniverseMatcher(effort=0),
    "effort-2": lambda: UniverseMatcher(effort=2),
    "effort-8": lambda: UniverseMatcher(effort=8),
    "coordinate-ascent": CoordinateAscent,
    "merge-many": MergeMany,
    "git-re-basin": GitReBasin,
    "pairwise-frank-wolfe": PairwiseFrankWolfe,
    "frank-wolfe": FrankWolfe,
}
"""What is compared unless the command line says otherwise."""
VARIANTS: dict[str, Callable[[], Matcher]] = {
    "frank-wolfe-20-ascent": lambda: ThenAscent(FrankWolfe(max_iterations=20)),
    "frank-wolfe-80-ascent": lambda: ThenAscent(FrankWolfe(max_iterations=80)),
    "barycentre-frank-wolfe-ascent": lambda: ThenAscent(FrankWolfe(start="barycentre")),
    "sinkhorn-frank-wolfe-ascent": lambda: ThenAscent(FrankWolfe(start="sinkhorn")),
    "blocks-4-ascent": lambda: ThenAscent(BlockFrankWolfe(max_passes=4)),
    "blocks-10-ascent": lambda: ThenAscent(BlockFrankWolfe(max_passes=10)),
    "blocks-40-ascent": lambda: ThenAscent(BlockFrankWolfe(max_passes=40)),
    "effort-1": lambda: UniverseMatcher(effort=1),
    "effort-16": lambda: UniverseMatcher(effort=16),
}
"""Stages and settings of the study of variants."""


@dataclass(frozen=True)
class Row:
    """One matcher on the first endpoints of one family.

    Attributes
    ----------
    family, clients, matcher
        The case.
    objective
        Sum over p < q.
    accuracy
        Of the average in the universe on test images (see `Family.quality`).
    repaired_accuracy
        The same after REPAIR, with 512 training images to calibrate.
    seconds
        Of the matching: CPU time, on a GPU wall time; with the bare cost beside it, the median of four runs.
    iterations
        Entries of the matcher's history, less its start.
    memory
        Peak of the device's memory while matching less what was in use before, in multiples of the clients' size; on the
        CPU the process's resident memory.
    product_seconds, assignment_seconds
        Bare cost of the matrix products and of the assignments, medians of three; None where it was not measured.
    """

    family: str
    clients: int
    matcher: str
    objective: float
    accuracy: float
    repaired_accuracy: float
    seconds: float
    iterations: int
    memory: float
    product_seconds: float | None
    assignment_seconds: float | None


@dataclass(frozen=True)
class Stopwatch:
    """Time and memory on a device: CPU time of all threads and resident memory, or a GPU's wall time and allocations."""

    device: torch.device

    def seconds(self) -> float:
        """The clock."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def forget_peak(self) -> int:
        """Forget the peak of memory; return what is in use now, in bytes."""
        gc.collect()
        if self.device.type != "cpu":
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        # What earlier cases have freed goes back to the system first: it would hide what the next one takes.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")

    def peak(self) -> int:
        """The peak, in bytes."""
        return _memory("VmHWM") if self.device.type == "cpu" else torch.cuda.max_memory_allocated(self.device)


def measure(
    family: Family, clients: int, matcher: str, solver: Matcher, *, with_limit: bool, device: torch.device
) -> Row:
    """Run one case."""
    endpoints, spec, problem = family.endpoints(range(clients)), family.spec(), _problem(family, clients, device)
    watch = Stopwatch(device)
    in_use, started = watch.forget_peak(), watch.seconds()
    matching = solver.match(problem)
    seconds, growth = [watch.seconds() - started], watch.peak() - in_use
    limits: list[Limit] = []
    while with_limit and len(limits) < _REPETITIONS:
        with measured_limit() as limit:
            solver.match(problem)
        limits.append(limit)
        started = watch.seconds()
        solver.match(problem)
        seconds.append(watch.seconds() - started)
    maps = as_client_maps(problem.group_names, matching.permutations, clients)
    mapped = [spec.apply(client, own) for client, own in zip(endpoints, maps, strict=True)]
    merged, repaired = family.merged_quality(mapped)
    return Row(
        family=family.name,
        clients=clients,
        matcher=matcher,
        objective=problem.objective(matching.permutations) / 2,
        accuracy=merged.accuracy,
        repaired_accuracy=repaired.accuracy,
        seconds=statistics.median(seconds),
        iterations=len(matching.iterations) - 1,
        memory=growth / sum(block.data.nbytes for block in problem.blocks),
        product_seconds=statistics.median(limit.products for limit in limits) if limits else None,
        assignment_seconds=statistics.median(limit.assignments for limit in limits) if limits else None,
    )


def _problem(family: Family, clients: int, device: torch.device) -> MatchingProblem:
    return MatchingProblem.build(family.endpoints(range(clients)), family.spec(), [1.0] * clients, device)


def profile(family: Family, clients: int, device: torch.device) -> str:
    """What the default matcher's time goes to: a table of operations, the most expensive first."""
    problem = _problem(family, clients, device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch_profile(activities=activities) as record:
        UniverseMatcher().match(problem)
    by = "self_cpu_time_total" if device.type == "cpu" else "self_cuda_time_total"
    return str(record.key_averages().table(sort_by=by, row_limit=_PROFILED))


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def environment(device: torch.device = _CPU) -> dict[str, Any]:
    """What the figures were measured on."""
    return {"hardware": hardware(device), **asdict(Environment())}


def draw(rows: Sequence[Row], folder: Path, prefix: str, clock: str) -> None:
    """Per family with several numbers of clients: objective relative to the default's, and time, against them."""
    import matplotlib as mpl  # noqa: PLC0415 - drawing is the last step, and slow to import in every process

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family and row.matcher not in ("identity", PAIR_SUM, *VARIANTS)]
        best = {row.clients: row.objective for row in own if row.matcher == "default"}
        if len(best) < 2:
            continue  # nothing to draw a line through
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for number, matcher in enumerate(dict.fromkeys(row.matcher for row in own)):
            color = f"C{number}"  # one colour for a matcher in both panels, which do not show the same ones
            line = sorted((row for row in own if row.matcher == matcher), key=lambda row: row.clients)
            clients = [row.clients for row in line]
            if matcher not in ("git-re-basin", "pairwise-frank-wolfe") and all(n in best for n in clients):
                left.plot(
                    clients, [row.objective / best[row.clients] for row in line], marker="o", color=color, label=matcher
                )
            right.plot(clients, [row.seconds for row in line], marker="o", color=color, label=matcher)
        left.set(xlabel="clients", ylabel="objective / default's", title=family)
        right.set(xlabel="clients", ylabel=clock, yscale="log")
        right.legend(fontsize=8)
        figure.savefig(folder / f"{prefix}-{family}.png", dpi=120)
        pyplot.close(figure)


def draw_sizes(rows: Sequence[Row], path: Path, clock: str) -> None:
    """Perceptrons of one number of clients: time against width at one depth, and against depth at one width."""
    from matplotlib import pyplot  # noqa: PLC0415 - as in `draw`

    sized = [(perceptron_size(row.family), row) for row in rows if row.clients == _SIZED_CLIENTS]
    if len({size for size, _ in sized if size is not None}) < 2:
        return
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, axis, kept in ((panels[0], 0, 3), (panels[1], 1, 256)):
        for matcher in ("default", "merge-many"):
            line = sorted(
                (size[axis], row.seconds, (row.product_seconds or 0.0) + (row.assignment_seconds or 0.0))
                for size, row in sized
                if size is not None and size[1 - axis] == kept and row.matcher == matcher
            )
            panel.plot([x for x, _, _ in line], [y for _, y, _ in line], marker="o", label=matcher)
            if matcher == "default":
                bare = [(x, y) for x, _, y in line if y]
                panel.plot([x for x, _ in bare], [y for _, y in bare], "k--", label="bare cost of the default")
    panels[0].set(xlabel="neurons per hidden layer (3 layers)", ylabel=clock, xscale="log", yscale="log")
    panels[1].set(xlabel="hidden layers (256 neurons each)", ylabel=clock)
    panels[0].set_title(f"{_SIZED_CLIENTS} perceptrons")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def summary(rows: Sequence[Row], clock: str) -> list[str]:
    """Every case in which both the default and MergeMany were measured, in Markdown."""
    lines = [
        f"| networks | n | objective, default | above MergeMany's | accuracy after REPAIR, default, MergeMany | "
        f"{clock}, default, MergeMany | times the bare cost | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_case = {(row.family, row.clients, row.matcher): row for row in rows}
    for (family, clients, matcher), own in sorted(by_case.items()):
        other = by_case.get((family, clients, "merge-many"))
        if matcher != "default" or other is None:
            continue
        bare = ""
        if own.product_seconds is not None and own.assignment_seconds is not None:
            bare = f"{own.seconds / (own.product_seconds + own.assignment_seconds):.2f}"
        lines.append(
            f"| {family} | {clients} | {own.objective:.2f} | {100 * (own.objective / other.objective - 1):+.2f} % | "
            f"{100 * own.repaired_accuracy:.2f} %, {100 * other.repaired_accuracy:.2f} % | "
            f"{own.seconds:.2f}, {other.seconds:.2f} | {bare} | {own.memory:.1f} |"
        )
    return lines


def table(rows: Sequence[Row], endpoints: Sequence[float], clock: str) -> list[str]:
    """One family's rows in Markdown."""
    lines = [
        f"The {len(endpoints)} networks have {100 * sum(endpoints) / len(endpoints):.2f} % on average "
        f"({100 * min(endpoints):.2f} to {100 * max(endpoints):.2f} %).",
        "",
        f"| n | matcher | objective | accuracy | after REPAIR | {clock} | iterations | bare products + assignments |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bare = ""
        if row.product_seconds is not None and row.assignment_seconds is not None:
            bare = f"{row.product_seconds:.2f} + {row.assignment_seconds:.2f}"
        accuracies = f"{100 * row.accuracy:.2f} % | {100 * row.repaired_accuracy:.2f} %"
        lines.append(
            f"| {row.clients} | {row.matcher} | {row.objective:.2f} | {accuracies} | {row.seconds:.2f} | "
            f"{row.iterations} | {bare} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show progress, write the JSON, the tables and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST and cifar10.npz")
    parser.add_argument("--cache", type=Path, default=Path("cache/endpoints"), help="folder of the trained networks")
    parser.add_argument("--families", nargs="*", default=["mlp512", "resnet1"])
    parser.add_argument("--clients", nargs="+", type=int, default=[2, 3, 5])
    usual = [*MATCHERS, PAIR_SUM]
    parser.add_argument("--matchers", nargs="+", default=usual, choices=[*usual, *VARIANTS], metavar="NAME")
    parser.add_argument("--limit", action="store_true", help="also time the bare products and assignments")
    parser.add_argument("--pair-sum-iterations", type=int, default=2, help="of the yardstick (default: 2)")
    parser.add_argument("--device", type=torch.device, default=_CPU, help="where to match (default: cpu)")
    parser.add_argument("--profile", action="store_true", help="only print what the default matcher's time goes to")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages, their figures and results/")
    options = parser.parse_args(arguments)
    device: torch.device = options.device
    if options.limit and device.type != "cpu":
        parser.error("--limit times the bare cost on the CPU only")
    torch.set_num_threads(1)
    if options.profile:
        for name, clients in product(options.families, options.clients):
            print(f"{name}, n = {clients}\n{profile(Family(name, options.data, options.cache), clients, device)}")
        return
    prefix, clock = ("matching", "CPU-seconds") if device.type == "cpu" else (f"matching-{device.type}", "seconds")
    output = options.docs / "results" / f"{prefix}.json"
    before = json.loads(output.read_text()) if output.exists() else {"rows": [], "endpoints": {}}
    rows = {
        (r["family"], r["clients"], r["matcher"]): Row(**r) for r in before["rows"]
    }  # those measured before are kept
    endpoints: dict[str, list[float]] = before["endpoints"]
    for name in options.families:
        family = Family(name, options.data, options.cache)
        count = max([*options.clients, len(endpoints.get(name, []))])
        endpoints[name] = [family.quality(each).accuracy for each in family.endpoints(range(count))]
        # What is set up once in a process, such as pools of threads, counts for no case.
        UniverseMatcher(effort=0).match(_problem(family, 2, device))
        for clients in options.clients:
            for matcher in options.matchers:
                pair_sum = PairSumFrankWolfe(options.pair_sum_iterations)
                solver = pair_sum if matcher == PAIR_SUM else (MATCHERS | VARIANTS)[matcher]()
                row = measure(family, clients, matcher, solver, with_limit=options.limit, device=device)
                rows[name, clients, matcher] = row
                print(json.dumps(asdict(row)), flush=True)
                ordered = [asdict(rows[key]) for key in sorted(rows)]
                result = {"environment": environment(device), "endpoints": endpoints, "rows": ordered}
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps(result, indent=1) + "\n")
    figures = options.docs / "figures"
    draw(list(rows.values()), figures, prefix, clock)
    replace_block(options.docs / "matching.md", f"{prefix}-summary", summary(list(rows.values()), clock), "Matching")
    for name, accuracies in endpoints.items():
        own = [rows[key] for key in sorted(rows) if key[0] == name]
        lines = [f"## {name}", "", *table(own, accuracies, clock)]
        if (figures / f"{prefix}-{name}.png").is_file():
            lines += ["", f"![{name}](figures/{prefix}-{name}.png)"]
        replace_block(options.docs / "matching-cases.md", f"{prefix}-{name}", lines, "Matching: every case")
    draw_sizes(list(rows.values()), figures / f"{prefix}-sizes.png", clock)


if __name__ == "__main__":
    main()
