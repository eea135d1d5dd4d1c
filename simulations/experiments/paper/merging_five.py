"""Merging five networks (Table 1): naive, MergeMany and C2M3, each before and after REPAIR."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from simulations.experiments.paper.merging import endpoint_cells, merged, stages_of
from simulations.experiments.paper.published import TABLE_1
from simulations.laboratory.drawing import COLOURS, LABELS, grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Claim,
    Experiment,
    Picture,
    Table,
    networks,
    percent,
    spread,
    spread_percent,
)
from simulations.laboratory.laboratory import METHODS, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

NAME = "merging-five"
_MODELS = 5
_NETWORKS = (
    "mlp-mnist",
    "mlp-emnist",
    "resnet20-emnist",
    "resnet20-cifar10",
    "vgg16-cifar10",
    "resnet20-cifar100",
    "vgg16-cifar100",
)


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Groups of five networks merged, each group from seeds of its own."""
    for network in _NETWORKS:
        for number in range(laboratory.scale.groups.get(network, 1)):
            seeds = range(number * _MODELS, (number + 1) * _MODELS)
            yield from endpoint_cells(laboratory, network, seeds)
            for method, matcher in METHODS.items():
                yield laboratory.cell(network, seeds, {"group": number, "method": method}, merged, matcher=matcher)


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Accuracy and loss, the paper's beside ours."""
    rows = []
    for network in _NETWORKS:
        ends = [r.values["test_accuracy"] for r in select(records, network=network, method="endpoint")]
        if ends:
            rows.append((network, LABELS["endpoint"], spread_percent(ends), "", "", ""))
        for method, (stage, words) in product(METHODS, stages_of(select(records, network=network)).items()):
            found = [r.values[stage] for r in select(records, network=network, method=method)]
            paper = TABLE_1.get((network, method, stage == "repaired"))
            if not found and not paper:
                continue
            rows.append(
                (
                    network,
                    LABELS[method] + words,
                    spread_percent([v["test_accuracy"] for v in found]) if found else NOT_RUN,
                    percent(paper.test_accuracy) if paper else "",
                    spread([v["test_loss"] for v in found]) if found else "",
                    f"{paper.test_loss:.2f}" if paper else "",
                )
            )
    yield Table(
        "Five networks merged: test set",
        ("network", "method", "accuracy, ours", "accuracy, paper", "loss, ours (nats)", "loss, paper"),
        tuple(rows),
    )


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Test accuracy by method, the paper's as a mark."""
    names = networks(records)
    if not names:
        return
    figure, axes = grid(len(names), width=3.6)
    bars = list(product(METHODS, stages_of(records).items()))
    for each, network in zip(axes, names, strict=True):
        for position, (method, (stage, _)) in enumerate(bars):
            values = [100 * r.values[stage]["test_accuracy"] for r in select(records, network=network, method=method)]
            mean = sum(values) / max(1, len(values))
            each.bar(position, mean, color=COLOURS[method], alpha={"average": 0.4, "repaired": 1.0}.get(stage, 0.7))
            each.scatter([position] * len(values), values, s=8, color="black", zorder=3)
            if paper := TABLE_1.get((network, method, stage == "repaired")):
                each.scatter(position, 100 * paper.test_accuracy, marker="_", s=260, color="#c0392b", zorder=4)
        ticks = [LABELS[method] + words.replace(" + ", "\n+ ") for method, (_, words) in bars]
        label(each, network, "", "test accuracy (%)")
        each.set_xticks(range(len(ticks)), ticks, rotation=60, fontsize=7)
    yield Picture(NAME, "Five networks merged. Dots: groups of seeds; red: the paper, with its own networks.", figure)


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That C2M3 is above MergeMany, with mapped endpoints for both, and above the naive mean."""
    for network in networks(records):
        ours, theirs, naive = (
            {r.about["group"]: r.values for r in select(records, network=network, method=method)}
            for method in ("c2m3", "merge-many", "naive")
        )
        groups = sorted(ours.keys() & theirs.keys() & naive.keys())
        for stage, words in (("average", "before"), ("repaired", "after")) if groups else ():
            gaps = [ours[g][stage]["test_accuracy"] - theirs[g][stage]["test_accuracy"] for g in groups]
            above = [ours[g][stage]["test_accuracy"] - naive[g]["average"]["test_accuracy"] for g in groups]
            paper = TABLE_1.get((network, "c2m3", stage == "repaired"))
            yield Claim.judged(
                f"Five networks merged by C2M3 are above MergeMany's and the naive mean, {words} REPAIR ({network})",
                [gap > 0 for gap in (*gaps, *above)],
                f"{spread_percent([ours[g][stage]['test_accuracy'] for g in groups])} over {len(groups)} group(s)"
                + (f" (paper: {percent(paper.test_accuracy)})" if paper else "")
                + f"; above MergeMany by {spread([100 * gap for gap in gaps], '{:+.2f}')} points",
            )


EXPERIMENT = Experiment(
    name=NAME,
    title="Merging five networks",
    source="Table 1",
    about=(
        "Groups of five networks (seeds 0 to 4, 5 to 9, ...) are merged. MergeMany + REPAIR gets the mapped networks as "
        "endpoints here; the paper's code gave it the unmapped ones, which handicaps it."
    ),
    cells=cells,
    tables=tables,
    pictures=pictures,
    claims=claims,
)
