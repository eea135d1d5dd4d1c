"""Linear mode connectivity in the universe (Figures 3, 6 and 10): landscapes and interpolation curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, product
from statistics import fmean
from typing import Any

from c2m3_fl.analysis import interpolate, landscape, positions
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
from simulations.laboratory.laboratory import Group, Laboratory, Network
from simulations.laboratory.ledger import Cell, Record, select

NAME = "connectivity"
_MODELS = 3
_NAMES = "abc"
_NETWORKS = ("mlp-mnist", "resnet20-cifar10", "vgg16-cifar10", "resnet20-cifar100")
_SPACES = {"before": "as they come", "after": "in the universe"}
_CURVES = (("before", False), ("after", False), ("after", True))


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Landscapes before and after, and curves between all pairs before, after, and after with REPAIR."""
    scale, seeds = laboratory.scale, range(_MODELS)
    for network in _NETWORKS:
        for (space, repaired), pair in product(_CURVES, combinations(seeds, 2)):
            about = {"what": "curve", "space": space, "repaired": repaired, "pair": list(pair)}
            options: dict[str, Any] = {"space": space, "repaired": repaired, "pair": pair, "points": scale.curve_points}
            yield laboratory.cell(network, seeds, about, _curves, matcher="default", **options)
        for space in _SPACES:
            sizes: dict[str, Any] = {"points": scale.landscape_points, "size": scale.landscape_size}
            about = {"what": "landscape", "space": space}
            yield laboratory.cell(network, seeds, about, _surface, space=space, matcher="default", **sizes)


def _space(group: Group, space: str, matcher: str) -> list[Network]:
    return group.merge(matcher).mapped if space == "after" else group.networks


def _surface(group: Group, space: str, matcher: str, points: int, size: int) -> Mapping[str, Any]:
    a, b, c = _space(group, space, matcher)
    return asdict(landscape(a, b, c, lambda network: group.bench.score(network, size=size)[1], points=points))


def _curves(
    group: Group, *, space: str, repaired: bool, pair: tuple[int, int], points: int, matcher: str
) -> Mapping[str, Any]:
    a, b = (_space(group, space, matcher)[each] for each in pair)
    scores = []
    for position in positions(points):
        between = interpolate(a, b, position)
        if repaired and 0.0 < position < 1.0:
            between = group.bench.repaired(between, [a, b], [1.0 - position, position])
        scores.append(group.bench.score(between))
    return {"position": list(positions(points)), "accuracy": [s[0] for s in scores], "loss": [s[1] for s in scores]}


def _barrier(record: Record) -> float:
    losses: list[float] = record.values["loss"]
    return max(losses) - 0.5 * (losses[0] + losses[-1])


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Test loss barriers of the three pairs."""
    rows = []
    for network in _NETWORKS:
        found = [
            select(records, network=network, what="curve", space=space, repaired=repaired)
            for space, repaired in (("before", False), ("after", False), ("after", True))
        ]
        cells = [spread([_barrier(record) for record in each]) if each else NOT_RUN for each in found]
        rows.append((network, *cells))
    yield Table(
        "Test loss barrier (nats), mean ± standard deviation over the three pairs",
        ("network", "as they come", "in the universe", "in the universe, with REPAIR"),
        tuple(rows),
    )


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Landscapes and curves."""
    for network in networks(records):
        surfaces = select(records, network=network, what="landscape")
        figure, axes = grid(2, height=3.6)
        top = max(max(max(row) for row in r.values["losses"]) for r in surfaces)
        for each, record in zip(axes, surfaces, strict=True):
            v = record.values
            drawn = each.contourf(
                v["x"], v["y"], v["losses"], levels=[top * step / 24 for step in range(25)], cmap="viridis"
            )
            for name, (x, y) in zip(_NAMES, v["corners"], strict=True):
                each.plot(x, y, "o", color="white", markeredgecolor="black")
                each.annotate(name, (x, y), xytext=(5, 5), textcoords="offset points", color="white")
            each.grid(False)
            label(
                each, f"{network}: {_SPACES[record.about['space']]}", "distance in the plane", "distance in the plane"
            )
            figure.colorbar(drawn, ax=each, label="test loss (nats)")
        yield Picture(f"{NAME}-landscape-{network}", "Test loss in the plane of three networks (Figure 3).", figure)
        figure, axes = grid(2)
        styles = {("before", False): ("#9aa0a6", "as they come"), ("after", False): ("#5b9bd5", "in the universe")}
        styles["after", True] = ("#1f5fa8", "in the universe, with REPAIR")
        for (each, quantity, factor), ((space, repaired), (colour, words)) in product(
            ((axes[0], "accuracy", 100.0), (axes[1], "loss", 1.0)), styles.items()
        ):
            for number, record in enumerate(
                select(records, network=network, what="curve", space=space, repaired=repaired)
            ):
                values = [factor * v for v in record.values[quantity]]
                each.plot(
                    record.values["position"], values, color=colour, linewidth=1, label=words if not number else None
                )
        label(axes[0], f"{network}: accuracy", "position between two networks", "test accuracy (%)")
        label(axes[1], f"{network}: loss", "position between two networks", "test loss (nats)")
        axes[1].legend(fontsize=7)
        yield Picture(f"{NAME}-curves-{network}", "Between the pairs of three networks (Figures 6 and 10).", figure)


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That the barrier falls."""
    for network in networks(records):
        before, after = (
            [_barrier(r) for r in select(records, network=network, what="curve", space=space, repaired=False)]
            for space in _SPACES
        )
        yield Claim.judged(
            f"In the universe networks are closer to linearly connected ({network})",
            [a < b for a, b in zip(after, before, strict=True)],
            f"mean test loss barrier {fmean(before):.3f} nats before, {fmean(after):.3f} after",
        )


EXPERIMENT = Experiment(
    name=NAME,
    title="Linear mode connectivity in the universe",
    source="Figures 3, 6 and 10",
    about="Loss in the plane of three networks (seeds 0 to 2) and on the segments between them, before and after mapping.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    claims=claims,
)
