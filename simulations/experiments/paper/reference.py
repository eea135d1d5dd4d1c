"""One network as the reference (Figure 9): mapping to an arbitrary one of five, against the universe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from c2m3_fl.symmetry import compose, invert
from simulations.experiments.paper.merging import merged
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Claim,
    Experiment,
    Picture,
    Table,
    networks,
    percent,
)
from simulations.laboratory.laboratory import Group, Laboratory, Network
from simulations.laboratory.ledger import Cell, Record, select

NAME = "reference"
_MODELS = 5
_NAMES = "abcde"
_NETWORKS = ("resnet20-cifar10", "vgg16-cifar10", "mlp-mnist")
_MATCHER = "git-re-basin"
_STAGES = {"average": "before REPAIR", "repaired": "after REPAIR"}


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Five networks merged in the basin of each, and in the universe."""
    for network in _NETWORKS:
        for number, name in enumerate(_NAMES):
            about = {"reference": name}
            yield laboratory.cell(network, range(_MODELS), about, _to_reference, reference=number, matcher=_MATCHER)
        yield laboratory.cell(network, range(_MODELS), {"reference": "universe"}, merged, matcher="default")


def _to_reference(group: Group, reference: int, matcher: str) -> Mapping[str, Any]:
    return group.bench.stages(mapped_to(group, reference, matcher))


def mapped_to(group: Group, reference: int, matcher: str) -> list[Network]:
    """Each network mapped to one of them by a pairwise matching."""
    mapped = []
    for number, network in enumerate(group.networks):
        if number == reference:
            mapped.append(network)
            continue
        # Two networks in their own universe: the map to the other one goes through it.
        to_universe = group.merge(matcher, (reference, number)).alignment.permutations
        mapped.append(group.bench.spec.apply(network, compose(to_universe[1], invert(to_universe[0]))))
    return mapped


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Accuracy by reference."""
    rows = []
    for network in _NETWORKS:
        found = select(records, network=network)
        for stage, words in _STAGES.items():
            by_reference = {str(r.about["reference"]): percent(r.values[stage]["test_accuracy"], 2) for r in found}
            cells = [by_reference.get(name, NOT_RUN if name == "a" else "") for name in (*_NAMES, "universe")]
            rows.append((network, words, *cells))
    columns = ("network", "", *(f"to {name}" for name in _NAMES), "universe (C2M3)")
    yield Table("Test accuracy of five networks merged, by reference", columns, tuple(rows))


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Bars by reference."""
    for network in networks(records):
        figure, axes = grid(2)
        for each, (stage, words) in zip(axes, _STAGES.items(), strict=True):
            names = [*_NAMES, "universe"]
            values = [
                100 * select(records, network=network, reference=n)[0].values[stage]["test_accuracy"] for n in names
            ]
            each.bar(names, values, color=["#9aa0a6"] * _MODELS + ["#1f5fa8"])
            label(each, f"{network}, {words}", "mapped to", "test accuracy (%)")
            low, high = min(values), max(values)
            each.set_ylim(max(0.0, low - 2 * (high - low) - 0.5), high + 0.5 * (high - low) + 0.2)
        yield Picture(
            f"{NAME}-{network}", "Five networks merged in the basin of one of them, and in the universe.", figure
        )


def findings(records: Sequence[Record]) -> Iterator[str]:
    """Where the universe ranks among the references."""
    for network in networks(records):
        for stage, words in _STAGES.items():
            values = [r.values[stage]["test_accuracy"] for r in select(records, network=network)]
            references, universe = values[:-1], values[-1]
            yield (
                f"{network}, {words}: references range from {percent(min(references), 2)} to {percent(max(references), 2)}; "
                f"the universe has {percent(universe, 2)}, above {sum(universe > v for v in references)} of {_MODELS}."
            )


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That an arbitrary reference is a gamble that the universe spares."""
    for network in networks(records):
        values = [r.values["repaired"]["test_accuracy"] for r in select(records, network=network)]
        references, universe = values[:-1], values[-1]
        here = (
            f"references {percent(min(references), 2)} to {percent(max(references), 2)}, universe {percent(universe, 2)}, "
            f"after REPAIR"
        )
        statement = f"Mapping to one of the networks depends on which one; the universe does better ({network})"
        yield Claim.judged(statement, [universe > value for value in references], here)


EXPERIMENT = Experiment(
    name=NAME,
    title="One network as the reference",
    source="Figure 9",
    about=(
        "Five networks (seeds 0 to 4) are mapped to one of them by Git Re-Basin's pairwise matching and averaged, for "
        "each as the reference; beside it the universe of C2M3."
    ),
    cells=cells,
    tables=tables,
    pictures=pictures,
    findings=findings,
    claims=claims,
)
