"""Merging five networks (Table 1): naive, MergeMany and C2M3, each before and after REPAIR."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from simulations.experiments.paper.published import TABLE_1
from simulations.laboratory.drawing import COLOURS, LABELS, grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Experiment,
    Picture,
    Table,
    networks,
    percent,
    select,
    spread,
    spread_percent,
)
from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.ledger import Ledger, Record
from simulations.laboratory.merging import METHODS, measure_endpoint, measure_merged

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
_STAGES = {"average": "", "repaired": " + REPAIR"}


def measure(laboratory: Laboratory, ledger: Ledger) -> None:
    """Merge groups of five networks, each group from seeds of its own."""
    for network in laboratory.chosen(_NETWORKS):
        config = laboratory.scale.networks[network]
        for group in range(laboratory.scale.groups.get(network, 1)):
            seeds = range(group * _MODELS, (group + 1) * _MODELS)
            for seed in seeds:
                measure_endpoint(laboratory, ledger, config, seed, network)
            for method, matcher in METHODS.items():
                measure_merged(laboratory, ledger, config, seeds, matcher, network=network, group=group, method=method)


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Accuracy and loss, the paper's beside ours."""
    rows = []
    for network in _NETWORKS:
        ends = [r.values["test_accuracy"] for r in select(records, network=network, method="endpoint")]
        if ends:
            rows.append((network, LABELS["endpoint"], spread_percent(ends), "", "", ""))
        for method, stage in product(METHODS, _STAGES):
            found = [r.values[stage] for r in select(records, network=network, method=method)]
            paper = TABLE_1.get((network, method, stage == "repaired"))
            if not found and not paper:
                continue
            rows.append(
                (
                    network,
                    LABELS[method] + _STAGES[stage],
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
    for each, network in zip(axes, names, strict=True):
        for position, (method, stage) in enumerate(product(METHODS, _STAGES)):
            values = [100 * r.values[stage]["test_accuracy"] for r in select(records, network=network, method=method)]
            mean = sum(values) / max(1, len(values))
            each.bar(position, mean, color=COLOURS[method], alpha=1.0 if stage == "repaired" else 0.5)
            each.scatter([position] * len(values), values, s=8, color="black", zorder=3)
            if paper := TABLE_1.get((network, method, stage == "repaired")):
                each.scatter(position, 100 * paper.test_accuracy, marker="_", s=260, color="#c0392b", zorder=4)
        ticks = [LABELS[method] + _STAGES[stage].replace(" + ", "\n+ ") for method, stage in product(METHODS, _STAGES)]
        label(each, network, "", "test accuracy (%)")
        each.set_xticks(range(len(ticks)), ticks, rotation=60, fontsize=7)
    yield Picture(NAME, "Five networks merged. Dots: groups of seeds; red: the paper, with its own networks.", figure)


def findings(records: Sequence[Record]) -> Iterator[str]:
    """Whether C2M3 is above MergeMany, with endpoints as fair, and both above naive."""
    for network in networks(records):
        by_group = {
            method: {r.about["group"]: r.values for r in select(records, network=network, method=method)}
            for method in METHODS
        }
        groups = sorted(set.intersection(*(set(each) for each in by_group.values())))
        if not groups:
            continue
        for stage, words in (("average", "before REPAIR"), ("repaired", "after REPAIR")):
            gaps = [
                100 * (by_group["c2m3"][g][stage]["test_accuracy"] - by_group["merge-many"][g][stage]["test_accuracy"])
                for g in groups
            ]
            above = all(
                by_group[m][g][stage]["test_accuracy"] > by_group["naive"][g]["average"]["test_accuracy"]
                for m in ("c2m3", "merge-many")
                for g in groups
            )
            yield (
                f"{network}, {words}: C2M3 minus MergeMany is {spread(gaps, '{:+.2f}')} points over {len(groups)} "
                f"group(s) of five, C2M3 ahead in {sum(gap > 0 for gap in gaps)}; both are "
                f"{'' if above else 'not '}above the naive mean in every group."
            )
        yield from _against_the_paper(records, network)
        objectives = [by_group["c2m3"][g]["objective"] - by_group["merge-many"][g]["objective"] for g in groups]
        yield (
            f"{network}: C2M3's objective is above MergeMany's in {sum(o > 0 for o in objectives)} of "
            f"{len(groups)} group(s)."
        )


def _against_the_paper(records: Sequence[Record], network: str) -> Iterator[str]:
    paper = TABLE_1.get((network, "c2m3", True))
    if paper is None:
        return
    ends = [r.values["test_accuracy"] for r in select(records, network=network, method="endpoint")]
    ours = [r.values["repaired"]["test_accuracy"] for r in select(records, network=network, method="c2m3")]
    gap = 100 * (sum(ours) / len(ours) - paper.test_accuracy)
    yield (
        f"{network}: C2M3 + REPAIR has {spread_percent(ours)}, {gap:+.1f} points from the paper's "
        f"{percent(paper.test_accuracy)}. The networks differ: those here have {spread_percent(ends)} by themselves."
    )


EXPERIMENT = Experiment(
    name=NAME,
    title="Merging five networks",
    source="Table 1",
    about=(
        "Groups of five networks (seeds 0 to 4, 5 to 9, ...) are merged. MergeMany + REPAIR gets the mapped networks as "
        "endpoints here; the paper's code gave it the unmapped ones, which handicaps it."
    ),
    measure=measure,
    tables=tables,
    pictures=pictures,
    findings=findings,
)
