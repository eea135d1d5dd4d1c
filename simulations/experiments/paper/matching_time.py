"""Time of matching (appendix A.5): ours, MergeMany, and Algorithm 1 as the paper describes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from c2m3_fl.matching import FrankWolfe, Matcher
from simulations.experiments.paper import published
from simulations.experiments.paper.pair_sum import PairSumFrankWolfe
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Experiment,
    Picture,
    Table,
    networks,
)
from simulations.laboratory.laboratory import Group, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

NAME = "matching-time"
_NETWORKS = ("mlp-mnist", "resnet20-cifar10", "vgg16-cifar10")
_ITERATIONS = 3
_WHOLE: Mapping[str, str] = {"c2m3": "default", "frank-wolfe": "frank-wolfe", "merge-many": "merge-many"}
_WORDS = {
    "c2m3": "default matcher, whole",
    "frank-wolfe": "Frank-Wolfe, whole",
    "merge-many": "MergeMany, whole",
    "frank-wolfe-iteration": "Frank-Wolfe, one iteration",
    "pair-sum-iteration": "pair sum, one iteration",
}


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Whole matchings, and one iteration of Algorithm 1 in both ways."""
    single: dict[str, Matcher] = {
        "frank-wolfe-iteration": FrankWolfe(max_iterations=_ITERATIONS),
        "pair-sum-iteration": PairSumFrankWolfe(_ITERATIONS),
    }
    for network, n in product(_NETWORKS, laboratory.scale.timing_numbers):
        for method, matcher in {**_WHOLE, **single}.items():
            runs = _ITERATIONS if method in single else 1
            yield laboratory.cell(network, range(n), {"n": n, "method": method}, _time, matcher=matcher, runs=runs)


def _time(group: Group, matcher: str | Matcher, runs: int) -> Mapping[str, Any]:
    alignment = group.merge(matcher).alignment
    return {"seconds": alignment.seconds / runs, "objective": alignment.objective}


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Seconds and objectives by n."""
    for network in _NETWORKS:
        found = select(records, network=network)
        rows = []
        for n in sorted({r.about["n"] for r in found}):
            by_method = {r.about["method"]: r.values for r in select(found, n=n)}
            cells = [f"{by_method[m]['seconds']:.2f}" if m in by_method else "-" for m in _WORDS]
            objectives = [f"{by_method[m]['objective']:.1f}" if m in by_method else "-" for m in _WHOLE]
            rows.append((str(n), *cells, *objectives))
        columns = ("n", *(f"{w} (s)" for w in _WORDS.values()), *(f"objective, {_WORDS[m]}" for m in _WHOLE))
        blank = (NOT_RUN, *[""] * (len(columns) - 1))
        yield Table(f"{network}: wall time of the matching, objective found", columns, tuple(rows) or (blank,))
    paper = [(f"ResNet20-{w}", m, f"{s:.0f}") for (w, m), s in published.SECONDS_TWO_RESNETS.items()]
    yield Table("The paper: two ResNet20 on its hardware", ("networks", "method", "seconds"), tuple(paper))


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Seconds against n."""
    names = networks(records)
    if not names:
        return
    figure, axes = grid(len(names))
    for each, network in zip(axes, names, strict=True):
        for method, words in _WORDS.items():
            points = sorted(
                (r.about["n"], r.values["seconds"]) for r in select(records, network=network, method=method)
            )
            if points:
                line = "o--" if method.endswith("iteration") else "o-"
                each.plot(*zip(*points, strict=True), line, markersize=3, label=words)
        label(each, network, "number of networks n", "wall time (s)", yscale="log")
    axes[-1].legend(fontsize=7)
    yield Picture(NAME, "Wall time of matching n networks, one thread.", figure)


def findings(records: Sequence[Record]) -> Iterator[str]:
    """Speed-up of one iteration over the pair sum."""
    for network in networks(records):
        found = select(records, network=network)
        for n in (min(r.about["n"] for r in found), max(r.about["n"] for r in found)):
            by_method = {r.about["method"]: r.values["seconds"] for r in select(found, n=n)}
            if {"pair-sum-iteration", "frank-wolfe-iteration"} <= by_method.keys():
                ratio = by_method["pair-sum-iteration"] / by_method["frank-wolfe-iteration"]
                yield (
                    f"{network}, n = {n}: an iteration of Algorithm 1 takes {by_method['frank-wolfe-iteration']:.2f} s; "
                    f"by the pair sum it takes {ratio:.1f} times as long."
                )


EXPERIMENT = Experiment(
    name=NAME,
    title="Time of matching",
    source="Appendix A.5",
    about=(
        "Wall time on one thread. The pair sum is Algorithm 1 as the paper describes it, over pairs of networks, with "
        "dense products and a numerical line search; both ways of one iteration are the mean of three."
    ),
    cells=cells,
    tables=tables,
    pictures=pictures,
    findings=findings,
)
