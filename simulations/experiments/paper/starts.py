"""Starts of Frank-Wolfe (Table 5): identity, barycentre, Sinkhorn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from c2m3_fl.analysis import interpolate, positions
from c2m3_fl.matching import FrankWolfe
from simulations.experiments.paper.published import TABLE_5
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Experiment,
    Picture,
    Table,
    networks,
    spread,
)
from simulations.laboratory.laboratory import Group, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

NAME = "starts"
_MODELS = 3
_NETWORKS = ("resnet20-cifar10", "vgg16-cifar10", "mlp-mnist")
_PAIRS = {"(a, b)": (0, 1), "(b, c)": (1, 2), "(a, c)": (0, 2)}


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Three networks matched from each start; the barriers of their pairs in the universe."""
    scale = laboratory.scale
    matchers = [FrankWolfe(start="identity"), FrankWolfe(start="barycentre")]
    matchers += [FrankWolfe(start="sinkhorn", seed=seed) for seed in range(scale.matching_seeds)]
    for network, matcher in product(_NETWORKS, matchers):
        about = {"start": matcher.start, "seed": matcher.seed}
        yield laboratory.cell(network, range(_MODELS), about, _barriers, matcher=matcher, points=scale.curve_points)


def _barriers(group: Group, matcher: FrankWolfe, points: int) -> Mapping[str, Any]:
    merge = group.merge(matcher)
    barriers = []
    for p, q in _PAIRS.values():
        a, b = merge.mapped[p], merge.mapped[q]
        losses = [group.bench.score(interpolate(a, b, at))[1] for at in positions(points)]
        barriers.append(max(losses) - 0.5 * (losses[0] + losses[-1]))
    return {"objective": merge.alignment.objective, "barriers": barriers}


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Barriers by pair and start, the paper's beside ours."""
    rows = []
    for network in _NETWORKS:
        for number, pair in enumerate(_PAIRS):
            row = [network, pair]
            for start, paper in TABLE_5.items():
                found = select(records, network=network, start=start)
                row.append(spread([r.values["barriers"][number] for r in found]) if found else NOT_RUN)
                row.append(f"{paper[number]:.2f}")
            rows.append(tuple(row))
        trials = [select(records, network=network, start=start) for start in TABLE_5]
        cells = [spread([r.values["objective"] for r in each], "{:.2f}") if each else "" for each in trials]
        rows.append((network, "objective", cells[0], "", cells[1], "", cells[2], ""))
    columns = ("network", "pair", *(f"{start}, {who}" for start in TABLE_5 for who in ("ours", "paper")))
    yield Table("Test loss barrier (nats) of three networks' pairs in the universe, by start", columns, tuple(rows))


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Barriers by start, a dot a trial."""
    for network in networks(records):
        figure, axes = grid(len(_PAIRS), width=3.2)
        for number, (each, pair) in enumerate(zip(axes, _PAIRS, strict=True)):
            for position, start in enumerate(TABLE_5):
                values = [r.values["barriers"][number] for r in select(records, network=network, start=start)]
                each.scatter([position] * len(values), values, s=14, color="#1f5fa8")
            label(each, f"{network}, {pair}", "start", "test loss barrier (nats)", xlim=(-0.5, 2.5))
            each.set_xticks(range(len(TABLE_5)), list(TABLE_5), fontsize=8)
        yield Picture(f"{NAME}-{network}", "Barriers in the universe by the start of Frank-Wolfe.", figure)


def findings(records: Sequence[Record]) -> Iterator[str]:
    """Which start finds the best objective."""
    for network in networks(records):
        means = {}
        for start in TABLE_5:
            values = [r.values["objective"] for r in select(records, network=network, start=start)]
            means[start] = sum(values) / len(values)
        best = max(means, key=lambda start: means[start])
        listed = ", ".join(f"{start} {value:.2f}" for start, value in means.items())
        yield f"{network}: mean objective by start: {listed}; the best is {best}."


EXPERIMENT = Experiment(
    name=NAME,
    title="Starts of Frank-Wolfe",
    source="Table 5",
    about="The paper's Algorithm 1 on three networks (seeds 0 to 2) from three kinds of start; the random one repeated.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    findings=findings,
)
