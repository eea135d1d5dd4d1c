"""Cycle error (Figures 2a and 2b): a network mapped around a cycle of pairwise maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from c2m3_fl.analysis import cycle, cycle_error, interpolate, positions
from c2m3_fl.symmetry import Permutations
from simulations.experiments.paper import published
from simulations.laboratory.drawing import COLOURS, LABELS, grid, label
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

NAME = "cycle-error"
_NAMES = "ABC"
_NETWORKS = ("resnet20-cifar10", "vgg16-cifar10", "mlp-mnist")
_MATCHERS: Mapping[str, str] = {"git-re-basin": "git-re-basin", "c2m3": "default"}


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """The cycle from each of three networks, and the curve between the first one and its image."""
    points = laboratory.scale.curve_points
    for network in _NETWORKS:
        for method, matcher in _MATCHERS.items():
            seeds = range(len(_NAMES))
            yield laboratory.cell(
                network, seeds, {"method": method}, _cycle, maps=method, matcher=matcher, points=points
            )


def _cycle(group: Group, maps: str, matcher: str, points: int) -> Mapping[str, Any]:
    bench, ends = group.bench, group.networks
    around = (_pairwise if maps == "git-re-basin" else _through_universe)(group, matcher)
    image = bench.spec.apply(ends[0], cycle(around))
    scores = [bench.score(interpolate(ends[0], image, at)) for at in positions(points)]
    return {
        "errors": [cycle_error(end, around[i:] + around[:i], bench.spec) for i, end in enumerate(ends)],
        "position": list(positions(points)),
        "accuracy": [accuracy for accuracy, _ in scores],
        "loss": [loss for _, loss in scores],
    }


def _pairwise(group: Group, matcher: str) -> list[Permutations]:
    """A to B, B to C and C to A, each matched on its own."""
    count = len(group.networks)
    return [group.merge(matcher, (here, (here + 1) % count)).alignment.pairwise(1, 0) for here in range(count)]


def _through_universe(group: Group, matcher: str) -> list[Permutations]:
    """The same maps through one universe."""
    count = len(group.networks)
    return [group.merge(matcher).alignment.pairwise((source + 1) % count, source) for source in range(count)]


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Errors, the paper's beside ours."""
    rows = []
    for network in _NETWORKS:
        for method in _MATCHERS:
            found = select(records, network=network, method=method)
            ours = ", ".join(f"{error:.2f}" for error in found[0].values["errors"]) if found else NOT_RUN
            rows.append((network, LABELS[method], ours, ", ".join(map(str, published.CYCLE_ERROR[method]))))
    yield Table(
        "Distance of a network from its image around the cycle, from A, from B and from C (Figure 2b)",
        ("network", "maps", "ours", "paper (with its own networks)"),
        tuple(rows),
    )


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Accuracy and loss between A and its image."""
    for network in networks(records):
        figure, axes = grid(2)
        for record in select(records, network=network):
            method = str(record.about["method"])
            for each, quantity, factor in ((axes[0], "accuracy", 100.0), (axes[1], "loss", 1.0)):
                values = [factor * v for v in record.values[quantity]]
                each.plot(record.values["position"], values, color=COLOURS[method], label=LABELS[method])
        label(axes[0], f"{network}: accuracy", "position between A and its image", "test accuracy (%)")
        label(axes[1], f"{network}: loss", "position between A and its image", "test loss (nats)")
        axes[1].legend(fontsize=8)
        yield Picture(f"{NAME}-{network}", "From A to its image around the cycle A, B, C, A (Figure 2a).", figure)


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That C2M3's error is exactly 0 and pairwise maps' is not."""
    errors = {
        network: [select(records, network=network, method=method)[0].values["errors"] for method in _MATCHERS]
        for network in networks(records)
    }
    if errors:
        cases = [not any(ours) and min(theirs) > 0 for theirs, ours in errors.values()]
        listed = "; ".join(
            f"{network} {max(ours):g} and {min(theirs):.2f}" for network, (theirs, ours) in errors.items()
        )
        statement = "Around a cycle C2M3 maps a network exactly to itself, pairwise maps do not"
        yield Claim.judged(statement, cases, f"largest error of C2M3, smallest of Git Re-Basin: {listed}")


EXPERIMENT = Experiment(
    name=NAME,
    title="Cycle error",
    source="Figures 2a and 2b",
    about="Network A (seed 0) is mapped to B (1), to C (2) and back to A, by pairwise maps and through the universe.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    claims=claims,
)
