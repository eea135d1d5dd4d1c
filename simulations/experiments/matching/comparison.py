"""Matchers side by side: objective, merged accuracy, time, memory, and the bare cost of products and assignments.

The objective is the sum over pairs p < q of the mapped networks' inner products, all parameters included.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from c2m3_fl.matching import Matcher, MatchingProblem, UniverseMatcher
from c2m3_fl.matching.problem import as_client_maps
from simulations.experiments.matching.limit import Limit, measured_limit
from simulations.experiments.matching.matchers import MATCHERS, PAIR_SUM, VARIANTS
from simulations.experiments.paper.merging import endpoint_cells
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import Experiment, Picture, Table, networks, percent, spread_percent
from simulations.laboratory.laboratory import Group, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

_REPETITIONS = 3  # of a case with its bare cost, in turn: on a busy machine only neighbours in time compare
_STUDIED = 5  # clients in the study of variants
_HALF = ("git-re-basin", "pairwise-frank-wolfe")  # their objective is out of the others' range


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Every matcher on the first networks of each kind, and the variants on one of them."""
    for network, numbers in laboratory.scale.compared.items():
        config = laboratory.scale.sized(network)
        yield from endpoint_cells(laboratory, network, range(max(numbers)), config=config)
        for n in numbers:
            variants = VARIANTS if n == _STUDIED and network == laboratory.scale.studied else {}
            for name, matcher in {**MATCHERS, **variants}.items():
                about = {"n": n, "matcher": name, "device": laboratory.store.device.type}
                limit = name == "default" and laboratory.store.device.type == "cpu"
                yield laboratory.cell(network, range(n), about, _compare, config=config, matcher=matcher, limit=limit)


def _compare(group: Group, matcher: Matcher, limit: bool) -> Mapping[str, Any]:
    bench = group.bench
    clients = len(group.networks)
    problem = MatchingProblem.build(group.networks, bench.spec, [1.0] * clients, bench.device)
    # What is set up once in a process, such as pools of threads, counts for no case.
    UniverseMatcher(effort=0).match(MatchingProblem.build(group.networks[:2], bench.spec, [1.0] * 2, bench.device))
    watch = Stopwatch(bench.device)
    in_use, started = watch.forget_peak(), watch.seconds()
    matching = matcher.match(problem)
    seconds, growth = [watch.seconds() - started], watch.peak() - in_use
    limits: list[Limit] = []
    while limit and len(limits) < _REPETITIONS:
        with measured_limit() as bare:
            matcher.match(problem)
        limits.append(bare)
        started = watch.seconds()
        matcher.match(problem)
        seconds.append(watch.seconds() - started)
    maps = as_client_maps(problem.group_names, matching.permutations, clients)
    mapped = [bench.spec.apply(client, own) for client, own in zip(group.networks, maps, strict=True)]
    return {
        "objective": problem.objective(matching.permutations) / 2,
        **bench.stages(mapped),
        "seconds": statistics.median(seconds),
        "iterations": len(matching.iterations) - 1,
        "memory": growth / sum(block.data.nbytes for block in problem.blocks),
        "product_seconds": statistics.median(bare.products for bare in limits) if limits else None,
        "assignment_seconds": statistics.median(bare.assignments for bare in limits) if limits else None,
    }


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


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _cell(record: Record, stage: str) -> str:
    return percent(record.values[stage]["test_accuracy"], 2)


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """The default beside MergeMany in every case; then every case."""
    columns = (
        "networks",
        "n",
        "objective, default",
        "above MergeMany's",
        "accuracy after REPAIR, default, MergeMany",
        "seconds, default, MergeMany",
        "times the bare cost",
        "memory",
    )
    yield Table("The default beside MergeMany", columns, tuple(_summary(records)))
    for network in networks(records):
        own = [r for r in select(records, network=network) if "matcher" in r.about]
        ends = [r.values["test_accuracy"] for r in select(records, network=network, method="endpoint")]
        rows = [
            (
                str(r.about["n"]),
                str(r.about["matcher"]),
                f"{r.values['objective']:.2f}",
                _cell(r, "average"),
                _cell(r, "repaired"),
                f"{r.values['seconds']:.2f}",
                str(r.values["iterations"]),
                "" if (bare := _bare(r)) is None else f"{bare:.2f}",
            )
            for r in sorted(own, key=lambda r: (r.about["n"], r.about["matcher"]))
        ]
        heads = ("n", "matcher", "objective", "accuracy", "after REPAIR", "seconds", "iterations", "bare cost (s)")
        themselves = f"; the networks have {spread_percent(ends)}" if ends else ""
        yield Table(f"{network}: every case{themselves}", heads, tuple(rows))


def _summary(records: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    for own in select(records, matcher="default"):
        about = {key: own.about[key] for key in ("network", "n", "device")}
        for other in select(records, matcher="merge-many", **about):
            a, b = own.values, other.values
            bare = _bare(own)
            yield (
                str(about["network"]),
                str(about["n"]),
                f"{a['objective']:.2f}",
                f"{100 * (a['objective'] / b['objective'] - 1):+.2f} %",
                f"{_cell(own, 'repaired')}, {_cell(other, 'repaired')}",
                f"{a['seconds']:.2f}, {b['seconds']:.2f}",
                "" if bare is None else f"{a['seconds'] / bare:.2f}",
                f"{a['memory']:.1f}",
            )


def _bare(record: Record) -> float | None:
    parts = record.values["product_seconds"], record.values["assignment_seconds"]
    return None if None in parts else sum(parts)


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Objective relative to the default's, and time, against the number of networks."""
    for network, device in product(networks(records), ("cpu", "cuda")):
        own = [r for r in select(records, network=network, device=device) if r.about["matcher"] not in VARIANTS]
        best = {r.about["n"]: r.values["objective"] for r in select(own, matcher="default")}
        if len(best) < 2:
            continue  # nothing to draw a line through
        figure, (left, right) = grid(2)
        for number, matcher in enumerate(name for name in MATCHERS if name not in ("identity", PAIR_SUM)):
            line = sorted(select(own, matcher=matcher), key=lambda r: int(r.about["n"]))
            counts = [r.about["n"] for r in line]
            if matcher not in _HALF:
                relative = [r.values["objective"] / best[r.about["n"]] for r in line]
                left.plot(counts, relative, marker="o", color=f"C{number}")
            right.plot(counts, [r.values["seconds"] for r in line], marker="o", color=f"C{number}", label=matcher)
        label(left, network, "number of networks n", "objective / default's")
        label(right, network, "number of networks n", "seconds", yscale="log")
        right.legend(fontsize=7)
        name = f"matching-{network}" + ("" if device == "cpu" else f"-{device}")
        yield Picture(name, f"{network}: matchers against the number of networks.", figure)


EXPERIMENT = Experiment(
    name="matching",
    title="Matchers side by side",
    source="",
    about="Networks of seeds 0 to n - 1 by every matcher; on the CPU, seconds are those of all threads.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    whole=False,
    page="matching-cases",
)
