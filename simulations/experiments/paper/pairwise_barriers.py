"""Barriers between two networks (Tables 2, 3 and 4): naive, Git Re-Basin, pairwise Frank-Wolfe, and the default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, product
from statistics import fmean
from typing import Any

from c2m3_fl.analysis import interpolate, positions
from simulations.experiments.paper.published import PAIRWISE
from simulations.laboratory.drawing import LABELS, grid, label
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

NAME = "pairwise-barriers"
_MODELS = 3
_NETWORKS = (
    "resnet20-cifar10",
    "vgg16-cifar10",
    "resnet20-cifar100",
    "vgg16-cifar100",
    "resnet20-bn-cifar10",
    "mlp-mnist",
)
_MATCHERS: Mapping[str, str] = {
    "naive": "identity",
    "git-re-basin": "git-re-basin",
    "pairwise-frank-wolfe": "pairwise-frank-wolfe",
    "c2m3": "default",
}


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """The pairs of three networks under every matcher."""
    points = laboratory.scale.curve_points
    for network, pair in product(_NETWORKS, combinations(range(_MODELS), 2)):
        for method, matcher in _MATCHERS.items():
            about = {"method": method, "pair": list(pair)}
            yield laboratory.cell(network, pair, about, _curve, matcher=matcher, points=points)


def _curve(group: Group, matcher: str, points: int) -> Mapping[str, Any]:
    a, b = group.merge(matcher).mapped
    found = [group.bench.quality(interpolate(a, b, at)) for at in positions(points)]
    return {name: [each[name] for each in found] for name in found[0]}


def _barrier(record: Record, split: str) -> float:
    losses: list[float] = record.values[f"{split}_loss"]
    return max(losses) - 0.5 * (losses[0] + losses[-1])


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Train and test barriers, the paper's beside ours."""
    rows = []
    for network in _NETWORKS:
        for method in _MATCHERS:
            found = select(records, network=network, method=method)
            paper = asdict(PAIRWISE[network, method]) if (network, method) in PAIRWISE else {}
            if not found and not paper:
                continue
            cells: list[str] = []
            for split in ("train", "test"):
                cells.append(spread([_barrier(record, split) for record in found]) if found else NOT_RUN)
                cells.append(f"{paper[split]:.2f} ± {paper[split + '_std']:.2f}" if paper else "")
            rows.append((network, LABELS[method] if method != "c2m3" else "default matcher", *cells))
    yield Table(
        "Loss barrier of two networks (nats), mean ± standard deviation over the pairs of three",
        ("network", "matcher", "train, ours", "train, paper", "test, ours", "test, paper"),
        tuple(rows),
    )


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Test barriers as bars, with the paper's mark."""
    names = networks(records)
    if not names:
        return
    figure, axes = grid(len(names), width=3.2)
    for each, network in zip(axes, names, strict=True):
        for position, method in enumerate(_MATCHERS):
            values = [_barrier(record, "test") for record in select(records, network=network, method=method)]
            each.bar(position, sum(values) / max(1, len(values)), color="#5b9bd5")
            each.scatter([position] * len(values), values, s=9, color="black", zorder=3)
            if (network, method) in PAIRWISE:
                each.scatter(position, PAIRWISE[network, method].test, marker="_", s=260, color="#c0392b", zorder=4)
        label(each, network, "", "test loss barrier (nats)")
        each.set_yscale("symlog", linthresh=0.01)
        each.set_xticks(
            range(len(_MATCHERS)), ["naive", "Git Re-Basin", "Frank-Wolfe", "default"], rotation=40, fontsize=8
        )
    yield Picture(
        NAME, "Test loss barrier of two networks. Dots: pairs; red: the paper, with its own networks.", figure
    )


def findings(records: Sequence[Record]) -> Iterator[str]:
    """Which matcher has the lowest mean barrier."""
    for network in networks(records):
        means = {
            method: sum(values) / len(values)
            for method in _MATCHERS
            if (values := [_barrier(r, "test") for r in select(records, network=network, method=method)])
        }
        listed = ", ".join(f"{LABELS.get(m, m) if m != 'c2m3' else 'default'} {v:.3f}" for m, v in means.items())
        yield f"{network}: mean test barrier in nats: {listed}."


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That pairwise Frank-Wolfe does no worse than Git Re-Basin, and both better than plain averaging."""
    means = {
        network: [
            _mean_barrier(records, network, method) for method in ("naive", "git-re-basin", "pairwise-frank-wolfe")
        ]
        for network in networks(records)
    }
    if means:
        listed = "; ".join(f"{network} {frank:.3f}, {git:.3f}" for network, (_, git, frank) in means.items())
        statement = "Two networks matched by Frank-Wolfe have no higher barrier than by Git Re-Basin"
        cases = [frank <= 1.02 * git for _, git, frank in means.values()]
        yield Claim.judged(statement, cases, f"mean test barrier in nats, of Frank-Wolfe, of Git Re-Basin: {listed}")
        batch = means.get("resnet20-bn-cifar10")
        if batch is not None:
            yield Claim.judged(
                "Matching lowers the barrier of ResNet20 with BatchNorm (Table 4)",
                [value < batch[0] for value in batch[1:]],
                f"{batch[0]:.2f} nats unmatched; {batch[1]:.2f} by Git Re-Basin, {batch[2]:.2f} by Frank-Wolfe",
            )


def _mean_barrier(records: Sequence[Record], network: str, method: str) -> float:
    return fmean(_barrier(r, "test") for r in select(records, network=network, method=method))


EXPERIMENT = Experiment(
    name=NAME,
    title="Barriers between two networks",
    source="Tables 2, 3 and 4",
    about="Loss along the segment between two matched networks, for the pairs of three networks (seeds 0 to 2).",
    cells=cells,
    tables=tables,
    pictures=pictures,
    findings=findings,
    claims=claims,
)
