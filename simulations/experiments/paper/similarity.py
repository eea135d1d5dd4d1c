"""Similarity of networks before and after mapping (Figures 5, 14 and 15)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from c2m3_fl.analysis import cosine_similarity, distance, linear_cka, representation_distance
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
from simulations.laboratory.laboratory import Bench, Group, Laboratory, Network
from simulations.laboratory.ledger import Cell, Record, select

NAME = "similarity"
_SAME = 1e-4
_MODELS = 5
_IMAGES = 512
_NETWORKS = ("resnet20-cifar10", "vgg16-cifar10", "mlp-mnist")
_MEASURES = {
    "cosine": "cosine of weights (Figure 5)",
    "distance": "Euclidean distance of weights (Figure 15)",
    "cka": "CKA of representations (Figures 14a, 14b)",
    "representation_distance": "Euclidean distance of representations (Figures 14c, 14d)",
}


def representation(bench: Bench, network: Mapping[str, Tensor], images: int) -> Tensor:
    """What the last linear layer gets, for the first test images: (images, features)."""
    last = [module for module in bench.module.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().cpu()))
    try:
        bench.score(network, size=images)
    finally:
        handle.remove()
    return seen[0]


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """All pairs of five networks, as they come and in the universe."""
    for network in _NETWORKS:
        yield laboratory.cell(network, range(_MODELS), {}, _similarities, matcher="default", images=_IMAGES)


def _similarities(group: Group, matcher: str, images: int) -> Mapping[str, Any]:
    return {
        "before": _matrices(group.bench, group.networks, images),
        "after": _matrices(group.bench, group.merge(matcher).mapped, images),
    }


def _matrices(bench: Bench, networks: Sequence[Network], images: int) -> dict[str, list[list[float]]]:
    names = [name for name in bench.spec.tensors if name not in bench.spec.carried]
    features = [representation(bench, network, images) for network in networks]
    compare: dict[str, Callable[[int, int], float]] = {
        "cosine": lambda p, q: cosine_similarity(networks[p], networks[q], names),
        "distance": lambda p, q: distance(networks[p], networks[q], names),
        "cka": lambda p, q: linear_cka(features[p], features[q]),
        "representation_distance": lambda p, q: representation_distance(features[p], features[q]),
    }
    size = range(len(networks))
    return {name: [[function(p, q) for q in size] for p in size] for name, function in compare.items()}


def _pairs(record: Record, when: str, measure: str) -> list[float]:
    matrix = record.values[when][measure]
    return [matrix[p][q] for p, q in combinations(range(len(matrix)), 2)]


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Mean over the pairs, before and after."""
    rows = []
    for network in _NETWORKS:
        found = select(records, network=network)
        for name, words in _MEASURES.items():
            if not found:
                rows.append((network, words, NOT_RUN, "", "", ""))
                continue
            before, after = (_pairs(found[0], when, name) for when in ("before", "after"))
            ratio = sum(after) / sum(before)
            paper = {"cosine": f"{published.COSINE_GAIN:.0f} times", "cka": "1 (exactly the same)"}.get(name, "lower")
            rows.append((network, words, spread(before), spread(after), f"{ratio:.2f} times", paper))
    columns = ("network", "measure", "before", "in the universe", "ratio, ours", "ratio, paper (ResNet20-2x, CIFAR-10)")
    yield Table("Similarity over the ten pairs of five networks, mean ± standard deviation", columns, tuple(rows))


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """The matrices."""
    for network in networks(records):
        record = select(records, network=network)[0]
        figure, axes = grid(4, 2, width=3.1, height=2.8)
        for each, (when, name) in zip(axes, product(("before", "after"), _MEASURES), strict=True):
            matrix = record.values[when][name]
            both = [v for w in ("before", "after") for row in record.values[w][name] for v in row]
            image = each.imshow(matrix, vmin=min(both), vmax=max(both), cmap="viridis")
            each.grid(False)
            words = _MEASURES[name].split(" (")[0]
            label(each, f"{words}\n{'in the universe' if when == 'after' else 'before'}", "network", "network")
            each.set_xticks(range(len(matrix)), "abcde"[: len(matrix)])
            each.set_yticks(range(len(matrix)), "abcde"[: len(matrix)])
            figure.colorbar(image, ax=each, shrink=0.8)
        yield Picture(f"{NAME}-{network}", f"Similarity of five networks ({network}) before and after mapping.", figure)


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That CKA stays and the cosine rises."""
    for network in networks(records):
        record = select(records, network=network)[0]
        pairs = zip(_pairs(record, "before", "cka"), _pairs(record, "after", "cka"), strict=True)
        change = max(abs(a - b) for a, b in pairs)
        before, after = (fmean(_pairs(record, when, "cosine")) for when in ("before", "after"))
        yield Claim.judged(
            f"In the universe weights are {published.COSINE_GAIN:g} times as similar, representations the same ({network})",
            [after >= published.COSINE_GAIN * before, change < _SAME],
            f"mean cosine {before:.3f} before, {after:.3f} after; CKA changes by up to {change:.1e}",
        )


EXPERIMENT = Experiment(
    name=NAME,
    title="Similarity of networks",
    source="Figures 5, 14 and 15",
    about="Weights and last hidden representations of five networks (seeds 0 to 4) are compared, before and after mapping.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    claims=claims,
)
