"""Subsets (appendix C.2, Figure 16): k of five networks, matched among all five or among themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from simulations.experiments.paper import published
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import (
    Experiment,
    Picture,
    Table,
    networks,
    spread,
)
from simulations.laboratory.laboratory import Group, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

NAME = "subsets"
_MODELS = 5
_NAMES = "abcde"
_NETWORKS = ("mlp-mnist", "resnet20-cifar10", "vgg16-cifar10")
_SCHEMES = {"joint": "matched among all five", "separate": "matched among themselves"}
_STAGES = {"average": "before REPAIR", "repaired": "after REPAIR"}


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Every subset of two, three and four networks under both schemes."""
    for network in _NETWORKS:
        for (scheme, matched), k in product({"joint": _joint, "separate": _separate}.items(), range(2, _MODELS)):
            for subset in combinations(range(_MODELS), k):
                about = {"scheme": scheme, "k": k, "subset": "".join(_NAMES[model] for model in subset)}
                yield laboratory.cell(network, range(_MODELS), about, matched, subset=subset, matcher="default")


def _joint(group: Group, subset: tuple[int, ...], matcher: str) -> Mapping[str, Any]:
    mapped = group.merge(matcher).mapped
    return group.bench.stages([mapped[model] for model in subset])


def _separate(group: Group, subset: tuple[int, ...], matcher: str) -> Mapping[str, Any]:
    return group.bench.stages(group.merge(matcher, subset).mapped)


def _accuracies(records: Sequence[Record], stage: str, **about: object) -> list[float]:
    return [r.values[stage]["test_accuracy"] for r in select(records, **about)]


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Mean and spread over the subsets of each size."""
    for network in networks(records):
        rows = []
        for k, stage in product(range(2, _MODELS), _STAGES):
            found = [_accuracies(records, stage, network=network, scheme=scheme, k=k) for scheme in _SCHEMES]
            cells = [spread([100 * value for value in each], "{:.2f}") for each in found]
            rows.append((str(k), _STAGES[stage], *cells))
        yield Table(
            f"{network}: test accuracy (%), mean ± standard deviation over the subsets of k",
            ("k", "", *_SCHEMES.values()),
            tuple(rows),
        )


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Accuracy of every subset, with the mean and the standard deviation of its size."""
    for network in networks(records):
        figure, axes = grid(2)
        for each, scheme in zip(axes, _SCHEMES, strict=True):
            for stage, colour in (("average", "#c0392b"), ("repaired", "#1f5fa8")):
                for k in range(2, _MODELS):
                    values = [100 * v for v in _accuracies(records, stage, network=network, scheme=scheme, k=k)]
                    mean = sum(values) / len(values)
                    deviation = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
                    each.scatter([k] * len(values), values, s=9, color=colour, alpha=0.5)
                    each.errorbar(
                        k + 0.12, mean, deviation, fmt="s", color=colour, capsize=3, markersize=4,
                        label=_STAGES[stage] if k == 2 else None,
                    )  # fmt: skip
            label(each, f"{network}: {_SCHEMES[scheme]}", "size of the subset k", "test accuracy (%)", xticks=[2, 3, 4])
        axes[1].sharey(axes[0])
        axes[0].legend(fontsize=8)
        yield Picture(f"{NAME}-{network}", "Every subset of k of five networks (dots), mean and deviation.", figure)


def findings(records: Sequence[Record]) -> Iterator[str]:
    """The paper's three observations, each confirmed or refuted by what was measured."""
    for network in networks(records):
        found = select(records, network=network)
        yield from _joint_or_separate(found, network)
        spans = {
            words: max(
                max(values) - min(values)
                for k, scheme in product(range(2, _MODELS), _SCHEMES)
                if (values := _accuracies(found, stage, scheme=scheme, k=k))
            )
            for stage, words in _STAGES.items()
        }
        listed = " and ".join(f"{100 * span:.1f} points {words}" for words, span in spans.items())
        yield (
            f"{network}, observation 2 (subsets of one size differ by up to about "
            f"{100 * published.SUBSET_SPAN:.0f} points): the largest difference is {listed}."
        )
        lower = [k for k in range(2, _MODELS) if _deviation(found, "joint", k) < _deviation(found, "separate", k)]
        yield (
            f"{network}, observation 3 (before REPAIR, accuracy spreads less after joint matching) is "
            f"{_verdict(len(lower) == 3, bool(lower))}: the standard deviation is lower at k = "
            f"{', '.join(map(str, lower)) or 'none'} of 2, 3, 4."
        )


def _joint_or_separate(records: Sequence[Record], network: str) -> Iterator[str]:
    """Observation 1: matching the subset itself is better for k > 2, matching among all five for k = 2."""
    for k in range(2, _MODELS):
        gaps = {
            words: _mean(_accuracies(records, stage, scheme="joint", k=k))
            - _mean(_accuracies(records, stage, scheme="separate", k=k))
            for stage, words in _STAGES.items()
        }
        holds = [(gap > 0) == (k == 2) for gap in gaps.values()]
        listed = " and ".join(f"{100 * gap:+.2f} points {words}" for words, gap in gaps.items())
        yield (
            f"{network}, observation 1 at k = {k} ({'joint' if k == 2 else 'separate'} matching is better) is "
            f"{_verdict(all(holds), any(holds))}: joint minus separate is {listed}."
        )


def _verdict(whole: bool, part: bool) -> str:
    return "confirmed" if whole else "confirmed in part" if part else "refuted"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _deviation(records: Sequence[Record], scheme: str, k: int) -> float:
    values = _accuracies(records, "average", scheme=scheme, k=k)
    return sum((value - _mean(values)) ** 2 for value in values)


EXPERIMENT = Experiment(
    name=NAME,
    title="Merging subsets",
    source="Appendix C.2, Figure 16",
    about=(
        "All subsets of two, three and four of five networks are merged, with the maps of a matching among all five, "
        "and with those of a matching of the subset alone. Networks: seeds 0 to 4."
    ),
    cells=cells,
    tables=tables,
    pictures=pictures,
    findings=findings,
)
