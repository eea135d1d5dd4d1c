"""Ablation: cycle consistency (no, afterwards, from the start) times the solver (coordinate ascent, Frank-Wolfe).

Without cycle consistency each pair is matched on its own, and networks are merged by their maps to the first. Maps are
made consistent afterwards by permutation synchronisation: the leading eigenvectors of all pairwise maps, rounded (Pachauri
et al., NeurIPS 2013).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations, product
from statistics import fmean
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from c2m3_fl.analysis import cycle_error, interpolate
from c2m3_fl.symmetry import Permutations, compose, invert
from simulations.experiments.paper.merging import stages_of
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Claim,
    Experiment,
    Picture,
    Table,
    networks,
    spread,
    spread_percent,
)
from simulations.laboratory.laboratory import Group, Laboratory, Network
from simulations.laboratory.ledger import Cell, Record, select

NAME = "ablation"
_MODELS = 3
_GROUPS = 3
_NETWORKS = ("mlp-mnist", "resnet20-cifar10", "resnet20-bn-cifar10", "vgg16-cifar10")
_WAYS: Mapping[str, tuple[str, str]] = {
    "pairs, coordinate ascent": ("pairs", "git-re-basin"),
    "pairs, Frank-Wolfe": ("pairs", "pairwise-frank-wolfe"),
    "synchronised, coordinate ascent": ("synchronised", "git-re-basin"),
    "synchronised, Frank-Wolfe": ("synchronised", "pairwise-frank-wolfe"),
    "jointly, coordinate ascent": ("jointly", "coordinate-ascent"),
    "jointly, Frank-Wolfe (C2M3)": ("jointly", "frank-wolfe"),
    "jointly, the default": ("jointly", "default"),
}
Maps = dict[tuple[int, int], Permutations]
"""Per pair (p, q) the map from q to p."""


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Every way on groups of three networks, each from seeds of its own."""
    for network, number in product(_NETWORKS, range(_GROUPS)):
        seeds = range(number * _MODELS, (number + 1) * _MODELS)
        for way, (consistency, matcher) in _WAYS.items():
            about = {"group": number, "way": way}
            yield laboratory.cell(network, seeds, about, _measure, consistency=consistency, matcher=matcher)


def _measure(group: Group, consistency: str, matcher: str) -> Mapping[str, Any]:
    spec, ends = group.bench.spec, group.networks
    maps = pairwise_maps(group, matcher) if consistency != "jointly" else joint_maps(group, matcher)
    if consistency == "synchronised":
        maps = synchronised(maps, len(ends))
    around = [maps[1, 0], maps[2, 1], maps[0, 2]]
    mapped = [ends[0], *(spec.apply(end, maps[0, q]) for q, end in enumerate(ends) if q)]
    return {
        "cycle_errors": [cycle_error(end, around[i:] + around[:i], spec) for i, end in enumerate(ends)],
        "barriers": [_barrier(group, ends[p], spec.apply(ends[q], maps[p, q])) for p, q in combinations(range(3), 2)],
        "objective": _objective(mapped, [name for name in spec.tensors if name not in spec.carried]),
        **group.bench.stages(mapped),
    }


def pairwise_maps(group: Group, matcher: str) -> Maps:
    """Each pair matched on its own."""
    maps: Maps = {}
    for p, q in combinations(range(len(group.networks)), 2):
        maps[p, q] = group.merge(matcher, (p, q)).alignment.pairwise(0, 1)
        maps[q, p] = invert(maps[p, q])
    return maps


def joint_maps(group: Group, matcher: str) -> Maps:
    """The maps through one universe."""
    alignment = group.merge(matcher).alignment
    return {(p, q): alignment.pairwise(p, q) for p, q in permutations(range(len(group.networks)), 2)}


def synchronised(maps: Maps, count: int) -> Maps:
    """Consistent maps near pairwise ones."""
    to_first: list[Permutations] = [{} for _ in range(count)]
    for name, order in maps[0, 1].items():
        size = len(order)
        blocks = torch.eye(count * size, dtype=torch.float64)
        for (p, q), each in maps.items():
            blocks[p * size + torch.arange(size), q * size + each[name].cpu()] = 1.0
        leading = torch.linalg.eigh(blocks).eigenvectors[:, -size:].view(count, size, size)
        for q in range(count):
            gains = leading[0] @ leading[q].T
            to_first[q] = {**to_first[q], name: _assign(gains)}
    return {(p, q): compose(to_first[q], invert(to_first[p])) for p, q in permutations(range(count), 2)}


def _assign(gains: Tensor) -> Tensor:
    return torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])


def _barrier(group: Group, a: Network, b: Network) -> float:
    """Of the loss half way, which is where it is highest or near it."""
    ends = [group.bench.score(each)[1] for each in (a, b)]
    return group.bench.score(interpolate(a, b, 0.5))[1] - fmean(ends)


def _objective(mapped: Sequence[Network], names: Sequence[str]) -> float:
    flat = [torch.cat([network[name].double().flatten() for name in names]) for network in mapped]
    return float(sum(2 * (a @ b) for a, b in combinations(flat, 2)))


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Means over the groups."""
    for network in networks(records):
        own = select(records, network=network)
        stages = stages_of(own)
        rows = []
        for way in _WAYS:
            found = [r.values for r in select(own, way=way)]
            if not found:
                rows.append((way, NOT_RUN, *[""] * (2 + len(stages))))
                continue
            cells = [spread_percent([values[stage]["test_accuracy"] for values in found]) for stage in stages]
            errors = spread([fmean(values["cycle_errors"]) for values in found], "{:.2f}")
            barriers = spread([fmean(values["barriers"]) for values in found])
            rows.append((way, errors, barriers, spread([v["objective"] for v in found], "{:.1f}"), *cells))
        columns = (
            "matched",
            "cycle error",
            "barrier of pairs (nats)",
            "objective",
            *(f"accuracy{w}" for w in stages.values()),
        )
        yield Table(f"{network}: three networks, mean ± standard deviation over groups", columns, tuple(rows))


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Accuracy after REPAIR by way, a dot a group."""
    names = networks(records)
    if not names:
        return
    figure, axes = grid(len(names), height=3.8)
    for each, network in zip(axes, names, strict=True):
        for position, way in enumerate(_WAYS):
            found = select(records, network=network, way=way)
            values = [100 * r.values["repaired"]["test_accuracy"] for r in found]
            each.scatter([position] * len(values), values, s=12, color="#1f5fa8")
        label(each, network, "", "test accuracy + REPAIR (%)")
        each.set_xticks(range(len(_WAYS)), list(_WAYS), rotation=60, ha="right", fontsize=7)
    yield Picture(NAME, "Three networks merged, by what is consistent and by solver; a dot a group.", figure)


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That joint matching is worth more than making pairwise maps consistent afterwards."""
    for network in networks(records):
        own = select(records, network=network)
        joint, after = (
            [r.values["repaired"]["test_accuracy"] for r in select(own, way=way)]
            for way in ("jointly, Frank-Wolfe (C2M3)", "synchronised, Frank-Wolfe")
        )
        gaps = [100 * (a - b) for a, b in zip(joint, after, strict=True)]
        yield Claim.judged(
            f"Consistency from the start beats permutations synchronised afterwards ({network})",
            [gap > 0 for gap in gaps],
            f"{spread(gaps, '{:+.2f}')} points after REPAIR over {len(gaps)} group(s)",
        )


EXPERIMENT = Experiment(
    name=NAME,
    title="Ablation: consistency and solver",
    source="section 3",
    about=(
        "Three networks matched pair by pair, pair by pair and synchronised, or jointly; by coordinate ascent or by "
        "Frank-Wolfe. Pairs are merged by their maps to the first network."
    ),
    cells=cells,
    tables=tables,
    pictures=pictures,
    claims=claims,
)
