"""Variance over seeds (Figure 4, Table 6): Git Re-Basin's accuracy over its own seeds; ours has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from c2m3_fl.averaging import average
from c2m3_fl.matching import GitReBasin, Matcher
from simulations.experiments.paper.published import TABLE_6
from simulations.laboratory.drawing import COLOURS, LABELS, grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Claim,
    Experiment,
    Picture,
    Table,
    networks,
    percent,
    spread_percent,
)
from simulations.laboratory.laboratory import Group, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

NAME = "seed-variance"
_NOTICED = 0.01  # of accuracy, between the best and the worst seed
_MODELS = 3
_NETWORKS = ("resnet20-cifar10", "vgg16-cifar10", "mlp-mnist")
_OURS = {"pairwise-frank-wolfe": "pairwise-frank-wolfe", "c2m3": "default"}


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Midpoints of the pairs of three networks."""
    for network, pair in product(_NETWORKS, combinations(range(_MODELS), 2)):
        trials: list[tuple[str, int, str | Matcher]] = [
            ("git-re-basin", seed, GitReBasin(seed=seed)) for seed in range(laboratory.scale.matching_seeds)
        ]
        for method, seed, matcher in [*trials, *((method, 0, name) for method, name in _OURS.items())]:
            about = {"pair": list(pair), "method": method, "seed": seed}
            yield laboratory.cell(network, pair, about, _midpoint, matcher=matcher)


def _midpoint(group: Group, matcher: str | Matcher) -> Mapping[str, Any]:
    merge = group.merge(matcher)
    return {"objective": merge.alignment.objective, **group.bench.quality(average(merge.mapped))}


def _accuracies(records: Sequence[Record], network: str, pair: tuple[int, int], method: str) -> list[float]:
    return [r.values["test_accuracy"] for r in select(records, network=network, pair=list(pair), method=method)]


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Mean, deviation and largest gap over the seeds."""
    rows = []
    for network in _NETWORKS:
        for pair in combinations(range(_MODELS), 2):
            theirs = _accuracies(records, network, pair, "git-re-basin")
            mean, deviation, gap, frank_wolfe = TABLE_6[pair]
            ours = [_accuracies(records, network, pair, method) for method in _OURS]
            rows.append(
                (
                    network,
                    f"({pair[0] + 1}, {pair[1] + 1})",
                    spread_percent(theirs) if theirs else NOT_RUN,
                    f"{100 * (max(theirs) - min(theirs)):.1f} points" if theirs else "",
                    *(percent(each[0], 2) if each else "" for each in ours),
                    f"{100 * mean:.0f} ± {100 * deviation:.1f} %, {100 * gap:.1f} points, {100 * frank_wolfe:.0f} %",
                )
            )
    columns = (
        "network",
        "pair",
        "Git Re-Basin",
        "its largest gap",
        "pairwise Frank-Wolfe",
        "default",
        "paper: Git Re-Basin, its largest gap, Frank-Wolfe",
    )
    yield Table("Test accuracy midway between two networks, over the matcher's seeds (Table 6)", columns, tuple(rows))


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Accuracy by seed."""
    for network in networks(records):
        pairs = list(combinations(range(_MODELS), 2))
        figure, axes = grid(len(pairs), width=3.2)
        for each, pair in zip(axes, pairs, strict=True):
            theirs = [100 * v for v in _accuracies(records, network, pair, "git-re-basin")]
            each.plot(range(len(theirs)), theirs, "o", color=COLOURS["git-re-basin"], label=LABELS["git-re-basin"])
            for method in _OURS:
                ours = 100 * _accuracies(records, network, pair, method)[0]
                each.axhline(ours, color=COLOURS[method], linewidth=1, label=LABELS[method])
            label(each, f"{network}, pair ({pair[0] + 1}, {pair[1] + 1})", "seed of the matcher", "test accuracy (%)")
        axes[0].legend(fontsize=7)
        yield Picture(f"{NAME}-{network}", "Midway between two networks, over Git Re-Basin's seeds (Figure 4).", figure)


def findings(records: Sequence[Record]) -> Iterator[str]:
    """The largest gap, and how ours compares, in accuracy and in the objective that matching maximises."""
    for network in networks(records):
        pairs = list(combinations(range(_MODELS), 2))
        theirs = [_accuracies(records, network, pair, "git-re-basin") for pair in pairs]
        yield (
            f"{network}: Git Re-Basin's accuracy varies by up to {100 * max(max(t) - min(t) for t in theirs):.2f} points "
            f"over its {len(theirs[0])} seeds (paper: up to 10 points)."
        )
        for method, matcher in _OURS.items():
            gaps = []
            higher = 0
            for pair, accuracies in zip(pairs, theirs, strict=True):
                gaps.append(_accuracies(records, network, pair, method)[0] - sum(accuracies) / len(accuracies))
                found = [select(records, network=network, pair=list(pair), method=m) for m in (method, "git-re-basin")]
                higher += found[0][0].values["objective"] > max(r.values["objective"] for r in found[1])
            listed = ", ".join(f"{100 * gap:+.2f}" for gap in gaps)
            yield (
                f"{network}: {matcher}, without a seed, is {listed} points from Git Re-Basin's mean in the "
                f"{len(pairs)} pairs; its objective is above that of every seed in {higher} of them."
            )


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That Git Re-Basin's result is a matter of luck."""
    pairs = list(combinations(range(_MODELS), 2))
    gaps = {
        network: max(max(a) - min(a) for a in (_accuracies(records, network, pair, "git-re-basin") for pair in pairs))
        for network in networks(records)
    }
    if gaps:
        listed = ", ".join(f"{network} {100 * gap:.1f} points" for network, gap in gaps.items())
        statement = "Git Re-Basin's accuracy depends on its seed, by up to 10 points; Frank-Wolfe has no seed"
        yield Claim.judged(statement, [gap > _NOTICED for gap in gaps.values()], f"largest gap over seeds: {listed}")


EXPERIMENT = Experiment(
    name=NAME,
    title="Variance over seeds",
    source="Figure 4, Table 6",
    about="Git Re-Basin visits the layers in random order, so that its result depends on a seed. Networks: seeds 0 to 2.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    findings=findings,
    claims=claims,
)
