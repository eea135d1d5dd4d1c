"""Width (Figure 8): three ResNet20s merged, the wider the better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from simulations.laboratory.drawing import COLOURS, grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Claim,
    Experiment,
    Picture,
    Table,
    networks,
    percent,
)
from simulations.laboratory.laboratory import Group, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

NAME = "width"
_MODELS = 3
_NETWORKS = ("resnet20-cifar10", "mlp-mnist")
_STAGES = {"average": "C2M3", "repaired": "C2M3 + REPAIR"}


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Three networks merged at every width of the scale."""
    for network in _NETWORKS:
        for width in laboratory.scale.widths.get(network, ()):
            config = replace(laboratory.scale.networks[network], width=width)
            yield laboratory.cell(network, range(_MODELS), {"width": width}, _merged, config=config, matcher="default")


def _merged(group: Group, matcher: str) -> Mapping[str, Any]:
    qualities = [group.bench.quality(network) for network in group.networks]
    return {
        "endpoint_accuracy": fmean(quality["test_accuracy"] for quality in qualities),
        "endpoint_loss": fmean(quality["test_loss"] for quality in qualities),
        **group.merged_values(matcher),
    }


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Accuracy and loss by width."""
    for network in _NETWORKS:
        found = sorted(select(records, network=network), key=lambda r: r.about["width"])
        rows = [
            (
                f"{record.about['width']:g}x",
                percent(record.values["endpoint_accuracy"]),
                *(percent(record.values[stage]["test_accuracy"]) for stage in _STAGES),
                *(f"{record.values[stage]['test_loss'] - record.values['endpoint_loss']:.3f}" for stage in _STAGES),
            )
            for record in found
        ]
        columns = (
            "width",
            "the networks",
            *(f"{words}, test accuracy" for words in _STAGES.values()),
            *(f"{words}, loss above the networks' (nats)" for words in _STAGES.values()),
        )
        yield Table(f"{network}: three networks merged", columns, tuple(rows) or ((NOT_RUN, "", "", "", "", ""),))


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Accuracy and loss against width."""
    for network in networks(records):
        found = sorted(select(records, network=network), key=lambda r: r.about["width"])
        widths = [record.about["width"] for record in found]
        figure, axes = grid(2)
        for each, quantity, factor in ((axes[0], "accuracy", 100.0), (axes[1], "loss", 1.0)):
            ends = [factor * record.values[f"endpoint_{quantity}"] for record in found]
            each.plot(widths, ends, "o:", color=COLOURS["endpoint"], label="the networks themselves")
            for stage, words in _STAGES.items():
                values = [factor * record.values[stage][f"test_{quantity}"] for record in found]
                line = "o-" if stage == "repaired" else "o--"
                each.plot(widths, values, line, color=COLOURS["c2m3"], label=words)
            each.set_xscale("log", base=2)
            each.set_xticks(widths, [f"{width:g}x" for width in widths])
        label(axes[0], f"{network}: accuracy", "width", "test accuracy (%)")
        label(axes[1], f"{network}: loss", "width", "test loss (nats)")
        axes[1].legend(fontsize=8)
        yield Picture(f"{NAME}-{network}", "Three networks merged, by width.", figure)


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That wider networks lose less when merged."""
    for network in networks(records):
        found = sorted(select(records, network=network), key=lambda r: r.about["width"])
        lost = [r.values["endpoint_accuracy"] - r.values["repaired"]["test_accuracy"] for r in found]
        listed = ", ".join(f"{r.about['width']:g}x {100 * gap:.1f}" for r, gap in zip(found, lost, strict=True))
        if len(lost) > 1:
            statement = f"The wider the networks, the less merging costs ({network})"
            yield Claim.judged(statement, [b < a for a, b in pairwise(lost)], f"points lost with REPAIR: {listed}")


EXPERIMENT = Experiment(
    name=NAME,
    title="Width",
    source="Figure 8",
    about="Three networks (seeds 0 to 2) are merged at several widths, with and without REPAIR.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    claims=claims,
)
