"""Convergence of the paper's Frank-Wolfe (Figures 11, 12 and 13)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from c2m3_fl.matching import FrankWolfe, MatchingProblem
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Claim,
    Experiment,
    Picture,
    Table,
    networks,
)
from simulations.laboratory.laboratory import Group, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

NAME = "convergence"
_MODELS = 3
_SNAPSHOTS = 6
_PATCH = 16
_NETWORKS = ("mlp-mnist", "resnet20-cifar10", "vgg16-cifar10")


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Three networks matched, and one map of two networks over the first steps."""
    for network in _NETWORKS:
        yield laboratory.cell(network, range(_MODELS), {"what": "history"}, _history, matcher="frank-wolfe")
        yield laboratory.cell(network, range(2), {"what": "snapshots"}, _snapshots, steps=_SNAPSHOTS, patch=_PATCH)


def _history(group: Group, matcher: str) -> Mapping[str, Any]:
    iterations = group.merge(matcher).alignment.iterations
    return {
        "objective": [i.objective for i in iterations],
        "step": [i.step_size for i in iterations if i.step_size is not None],
    }


def _snapshots(group: Group, steps: int, patch: int) -> Mapping[str, Any]:
    problem = MatchingProblem.build(group.networks, group.bench.spec, [1.0, 1.0], group.bench.device)
    with ThreadPoolExecutor() as executor:
        maps = [FrankWolfe(max_iterations=count).ascend(problem, executor)[0][0][0] for count in range(1, steps + 1)]
    return {"maps": [m[:patch, :patch].tolist() for m in maps]}


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """The course of the objective in a few numbers."""
    rows = []
    for network in _NETWORKS:
        found = select(records, network=network, what="history")
        if not found:
            rows.append((network, NOT_RUN, "", "", "", ""))
            continue
        objective, step = found[0].values["objective"], found[0].values["step"]
        first, tenth, last = [f"{objective[min(i, len(objective) - 1)]:.2f}" for i in (0, 10, len(objective) - 1)]
        rows.append((network, str(len(step)), first, tenth, last, f"{_falls(objective)} (paper: 0)"))
    yield Table(
        "Objective of three networks (Figure 11)",
        ("network", "iterations", "at the start", "after 10", "at the end", "times it fell"),
        tuple(rows),
    )


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Objective, step sizes, and one map's entries."""
    for network in networks(records):
        values = select(records, network=network, what="history")[0].values
        figure, (left, right) = grid(2)
        left.plot(values["objective"], color="#1f5fa8")
        label(left, f"{network}: objective", "iteration", "objective (Eq. 4)")
        steps = list(enumerate(values["step"], start=1))
        for parity, words in ((1, "odd iterations"), (0, "even iterations")):
            chosen = [(i, step) for i, step in steps if i % 2 == parity]
            if chosen:
                right.plot(*zip(*chosen, strict=True), ".-", linewidth=0.8, markersize=4, label=words)
        label(right, f"{network}: step size", "iteration", "step size of the line search", ylim=(-0.03, 1.03))
        right.legend(fontsize=8)
        yield Picture(f"{NAME}-{network}", "Frank-Wolfe on three networks: objective and step sizes.", figure)
        maps = select(records, network=network, what="snapshots")[0].values["maps"]
        figure, axes = grid(len(maps), width=2.0, height=2.2)
        for number, (each, entries) in enumerate(zip(axes, maps, strict=True), start=1):
            each.imshow(entries, vmin=0, vmax=1, cmap="viridis_r")
            each.grid(False)
            label(each, f"step {number}", "universe", "network a")
        yield Picture(
            f"{NAME}-maps-{network}",
            f"First {len(maps[0])} rows and columns of one soft map over the first steps, two networks (Figure 13).",
            figure,
        )


def findings(records: Sequence[Record]) -> Iterator[str]:
    """How the step sizes alternate."""
    for network in networks(records):
        step = select(records, network=network, what="history")[0].values["step"]
        first = step[:20]
        odd, even = first[0::2], first[1::2]
        if even:
            yield (
                f"{network}: over the first {len(first)} iterations the mean step is {sum(odd) / len(odd):.2f} "
                f"in odd and {sum(even) / len(even):.2f} in even ones."
            )


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That the objective never falls."""
    falls = {
        network: _falls(select(records, network=network, what="history")[0].values["objective"])
        for network in networks(records)
    }
    if falls:
        listed = ", ".join(f"{network} {count} time(s)" for network, count in falls.items())
        yield Claim.judged("Frank-Wolfe's objective never falls", [not n for n in falls.values()], f"it fell: {listed}")


def _falls(objective: Sequence[float]) -> int:
    return sum(b < a - 1e-6 * abs(a) for a, b in pairwise(objective))


EXPERIMENT = Experiment(
    name=NAME,
    title="Convergence of Frank-Wolfe",
    source="Figures 11, 12 and 13",
    about="The paper's Algorithm 1, exact line search, on three networks (seeds 0 to 2); and one map over the first steps.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    findings=findings,
    claims=claims,
)
