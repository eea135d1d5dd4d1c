"""Networks matched by their activations on a calibration set, beside their parameters or in place of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch

from c2m3_fl.matching import ActivationMatcher, Matcher, UniverseMatcher
from simulations.laboratory.experiment import Experiment, Picture, Table, networks
from simulations.laboratory.laboratory import Group, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

_BATCH = 64
_NONE = "0"
_SHARES = (_NONE, "0.1", "0.3", "1", "3", "inf")  # JSON has no infinity
_QUANTITIES = (
    ("average", "test_accuracy", 100, 1),
    ("average", "test_loss", 1, 3),
    ("repaired", "test_accuracy", 100, 1),
    ("repaired", "test_loss", 1, 3),
)


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Sets of consecutive networks, by parameters and by shares of activations."""
    for network, plan in laboratory.scale.by_activations.items():
        config = laboratory.scale.sized(network)
        for n in plan.numbers:
            for seeds, share in product(consecutive(plan.networks, n, plan.most), _SHARES):
                about = {"set": list(seeds), "share": share}
                yield laboratory.cell(network, seeds, about, _matched, config=config, share=share)


def _matched(group: Group, share: str) -> Mapping[str, Any]:
    matcher: Matcher = UniverseMatcher()
    if share != _NONE:
        batches = [batch for images in group.bench.calibration for batch in torch.split(images, _BATCH)]
        matcher = ActivationMatcher(group.bench.module, batches, float(share))
    return group.merged_values(matcher)


def consecutive(count: int, clients: int, wanted: int) -> list[tuple[int, ...]]:
    """Different sets of consecutive networks, disjoint as long as there are enough of them."""
    return list(dict.fromkeys(tuple(sorted((k * clients + i) % count for i in range(clients))) for k in range(wanted)))


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Means over the sets; in brackets the least and the greatest difference from matching by parameters alone."""
    rows = []
    for network in networks(records):
        own = select(records, network=network)
        plain = {str(r.about["set"]): r for r in select(own, share=_NONE)}
        for n, share in product(sorted({len(r.about["set"]) for r in own}), _SHARES):
            found = [r for r in select(own, share=share) if len(r.about["set"]) == n and str(r.about["set"]) in plain]
            if found:
                pairs = [(r, plain[str(r.about["set"])]) for r in found]
                cells = [_cell(pairs, quantity, plain=share == _NONE) for quantity in _QUANTITIES]
                seconds = statistics.fmean(r.values["matching_seconds"] for r in found)
                rows.append((network, str(n), str(len(found)), share, *cells, f"{seconds:.1f}"))
    columns = ("networks", "n", "sets", "share", "accuracy, %", "loss", "after REPAIR, %", "loss", "seconds")
    yield Table("Matched by activations, beside the parameters or (share inf) in their place", columns, tuple(rows))


def _cell(pairs: Sequence[tuple[Record, Record]], quantity: tuple[str, str, int, int], *, plain: bool) -> str:
    stage, name, scale, digits = quantity
    values = [(scale * a.values[stage][name], scale * b.values[stage][name]) for a, b in pairs]
    gains = [a - b for a, b in values]
    mean = f"{statistics.fmean(a for a, _ in values):.{digits}f}"
    return mean if plain else f"{mean} ({min(gains):+.{digits}f} to {max(gains):+.{digits}f})"


def pictures(_records: Sequence[Record]) -> Iterator[Picture]:
    """None."""
    return iter(())


EXPERIMENT = Experiment(
    name="activations",
    title="Matching by activations",
    source="",
    about="Sets of networks matched by their parameters, and with shares of activations on the calibration images.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    whole=False,
    page="matching",
)
