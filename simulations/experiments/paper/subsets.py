"""Subsets (appendix C.2, Figure 16): k of five networks, matched among all five or among themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from statistics import fmean, stdev
from typing import Any

from simulations.experiments.paper import published
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Claim,
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
    return group.bench.stages([mapped[model] for model in subset], _STAGES)


def _separate(group: Group, subset: tuple[int, ...], matcher: str) -> Mapping[str, Any]:
    return group.bench.stages(group.merge(matcher, subset).mapped, _STAGES)


def _accuracies(records: Sequence[Record], stage: str, **about: object) -> list[float]:
    return [r.values[stage]["test_accuracy"] for r in select(records, **about)]


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Mean and spread over the subsets of each size."""
    for network in networks(records):
        rows = []
        for k, stage in product(range(2, _MODELS), _STAGES):
            found = [_accuracies(records, stage, network=network, scheme=scheme, k=k) for scheme in _SCHEMES]
            cells = [spread([100 * value for value in each], "{:.2f}") if each else NOT_RUN for each in found]
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


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """The paper's three observations."""
    for network in networks(records):
        found = select(records, network=network)
        gaps = {(k, stage): _gap(found, k, stage) for k, stage in product(range(2, _MODELS), _STAGES)}
        listed = "; ".join(f"k = {k} {_STAGES[stage]} {100 * gap:+.2f}" for (k, stage), gap in gaps.items())
        yield Claim.judged(
            f"Matching among all five is better for k = 2, matching the subset itself for k > 2 ({network})",
            [(gap > 0) == (k == 2) for (k, _), gap in gaps.items()],
            f"points, joint less separate: {listed}",
        )
        cases = [_accuracies(found, s, scheme=c, k=k) for s, c, k in product(_STAGES, _SCHEMES, range(2, _MODELS))]
        span = max(max(values) - min(values) for values in cases if values)
        yield Claim.judged(
            f"Subsets of one size differ by up to about {100 * published.SUBSET_SPAN:.0f} points ({network})",
            [span >= published.SUBSET_SPAN / 2],
            f"largest difference {100 * span:.1f} points",
        )
        spreads = {
            k: [stdev(_accuracies(found, "average", scheme=c, k=k)) for c in _SCHEMES] for k in range(2, _MODELS)
        }
        yield Claim.judged(
            f"Before REPAIR, accuracy spreads less after joint matching ({network})",
            [joint < separate for joint, separate in spreads.values()],
            "; ".join(f"k = {k}: {100 * a:.2f} joint, {100 * b:.2f} separate" for k, (a, b) in spreads.items()),
        )


def _gap(records: Sequence[Record], k: int, stage: str) -> float:
    return fmean(_accuracies(records, stage, scheme="joint", k=k)) - fmean(
        _accuracies(records, stage, scheme="separate", k=k)
    )


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
    claims=claims,
)
