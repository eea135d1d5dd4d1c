"""Many sets of networks: how far one matcher's merged networks are from another's, beyond the luck of one set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

from c2m3_fl.matching import CoordinateAscent, FrankWolfe, Identity, Matcher, MergeMany, UniverseMatcher
from simulations.experiments.paper.merging import endpoint_cells, merged
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import (
    NOT_RUN,
    Claim,
    Experiment,
    Picture,
    Table,
    networks,
    percent,
    spread,
    spread_percent,
)
from simulations.laboratory.laboratory import STAGES, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

NAME = "sets"
_METHODS: Mapping[str, Matcher] = {
    "naive": Identity(),
    "merge-many": MergeMany(),
    "coordinate-ascent": CoordinateAscent(),
    "frank-wolfe": FrankWolfe(),
    "c2m3-effort-0": UniverseMatcher(effort=0),
    "c2m3": UniverseMatcher(),
}
_WORDS = {
    "naive": "naive mean",
    "merge-many": "MergeMany",
    "coordinate-ascent": "coordinate ascent",
    "frank-wolfe": "the paper's Frank-Wolfe",
    "c2m3-effort-0": "default, effort 0",
    "c2m3": "default",
}
_ENOUGH = 3  # sets on which a difference is claimed


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """Every method on the same sets of networks; the smallest sets first."""
    for network, plan in laboratory.scale.sets.items():
        yield from endpoint_cells(laboratory, network, range(plan.networks))
        for n in plan.numbers:
            for seeds, (method, matcher) in product(subsets(plan.networks, n, plan.most), _METHODS.items()):
                about = {"n": n, "set": list(seeds), "method": method}
                yield laboratory.cell(network, seeds, about, merged, matcher=matcher)


def subsets(count: int, clients: int, most: int) -> list[tuple[int, ...]]:
    """Subsets of networks, all if there are at most `most`, else as many, spread evenly over the list of all."""
    every = list(combinations(range(count), clients))
    return every if len(every) <= most else [every[len(every) * k // most] for k in range(most)]


def _cases(records: Sequence[Record]) -> Iterator[tuple[str, int, dict[str, list[Record]]]]:
    """Per network and n the records of each method, all over the same sets."""
    for network in networks(records):
        own = [r for r in select(records, network=network) if "set" in r.about]
        for n in sorted({r.about["n"] for r in own}):
            by_set: dict[str, dict[str, Record]] = {}
            for record in select(own, n=n):
                by_set.setdefault(str(record.about["set"]), {})[record.about["method"]] = record
            whole = [each for each in by_set.values() if {"c2m3", "merge-many"} <= each.keys()]
            methods = [m for m in _METHODS if whole and all(m in each for each in whole)]
            if methods:
                yield network, n, {m: [each[m] for each in whole] for m in methods}


def _accuracies(records: Sequence[Record], stage: str) -> list[float]:
    return [r.values[stage]["test_accuracy"] for r in records if stage in r.values]


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Accuracy by method; then the default less MergeMany, set by set."""
    for network in networks(records):
        ends = [r.values["test_accuracy"] for r in select(records, network=network, method="endpoint")]
        rows = []
        for _, n, methods in (case for case in _cases(records) if case[0] == network):
            for method, found in methods.items():
                cells = [spread_percent(values) if (values := _accuracies(found, s)) else "" for s in STAGES]
                objective = spread([r.values["objective"] / 2 for r in found], "{:.1f}")
                rows.append((str(n), str(len(found)), _WORDS[method], objective, *cells))
        columns = (
            "n",
            "sets",
            "matcher",
            "objective",
            "accuracy",
            *(f"accuracy{w}" for w in list(STAGES.values())[1:]),
        )
        title = f"{network}: test accuracy merged, mean ± standard deviation over sets of n networks"
        yield Table(f"{title}; the networks have {spread_percent(ends)}" if ends else title, columns, tuple(rows))
    yield _differences(records)


def _differences(records: Sequence[Record]) -> Table:
    rows = []
    for network, n, methods in _cases(records):
        ours, theirs = methods["c2m3"], methods["merge-many"]
        objective = [
            100 * (a.values["objective"] / b.values["objective"] - 1) for a, b in zip(ours, theirs, strict=True)
        ]
        cells = [spread(objective, "{:+.2f}"), str(sum(gap > 0 for gap in objective))]
        for stage in STAGES:
            gaps = _gaps(ours, theirs, stage)
            cells += [spread(gaps, "{:+.1f}"), str(sum(gap > 0 for gap in gaps))] if gaps else ["", ""]
        rows.append((network, str(n), str(len(ours)), *cells))
    heads = [head for words in STAGES.values() for head in (f"accuracy{words}, points", "above in")]
    columns = ("network", "n", "sets", "objective, %", "above in", *heads)
    blank = ((NOT_RUN, *[""] * (len(columns) - 1)),)
    title = "The default less MergeMany, set by set (sets overlap, so the deviation is no standard error)"
    return Table(title, columns, tuple(rows) or blank)


def _gaps(ours: Sequence[Record], theirs: Sequence[Record], stage: str) -> list[float]:
    pairs = zip(_accuracies(ours, stage), _accuracies(theirs, stage), strict=True)
    return [100 * (a - b) for a, b in pairs]


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Accuracy after REPAIR against n, a dot a set."""
    for network in networks(records):
        figure, axes = grid(len(STAGES))
        for each, (stage, words) in zip(axes, STAGES.items(), strict=True):
            for number, (method, shown) in enumerate(_WORDS.items()):
                points = [
                    (n + 0.08 * (number - 2), [100 * a for a in _accuracies(methods.get(method, ()), stage)])
                    for name, n, methods in _cases(records)
                    if name == network
                ]
                points = [(x, values) for x, values in points if values]
                each.plot([x for x, _ in points], [sum(v) / len(v) for _, v in points], color=f"C{number}", label=shown)
                for x, values in points:
                    each.scatter([x] * len(values), values, s=8, color=f"C{number}")
            label(each, f"{network}{words}", "number of networks n", "test accuracy (%)")
        axes[0].legend(fontsize=7)
        yield Picture(f"{NAME}-{network}", f"{network}: sets of n networks merged; dots are sets, lines means.", figure)


def findings(records: Sequence[Record]) -> Iterator[str]:
    """The default against MergeMany after REPAIR, where there are sets enough."""
    for network, n, methods in _cases(records):
        gaps = _gaps(methods["c2m3"], methods["merge-many"], "repaired")
        if len(gaps) >= _ENOUGH:
            here, there = (_accuracies(methods[m], "repaired") for m in ("c2m3", "merge-many"))
            yield (
                f"{network}, n = {n}, after REPAIR: default {percent(sum(here) / len(here))}, MergeMany "
                f"{percent(sum(there) / len(there))}; the difference is {spread(gaps, '{:+.1f}')} points over {len(gaps)} "
                f"sets, above in {sum(gap > 0 for gap in gaps)}."
            )


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That joint matching beats MergeMany, on every network."""
    for network in networks(records):
        gaps = {
            n: _gaps(methods["c2m3"], methods["merge-many"], "repaired")
            for name, n, methods in _cases(records)
            if name == network
        }
        judged = {n: found for n, found in gaps.items() if n >= 3 and found}
        if judged:
            here = "; ".join(
                f"n = {n}: {spread(found, '{:+.1f}')} points, {len(found)} set(s)" for n, found in judged.items()
            )
            above = [sum(found) > 0 for found in judged.values()]
            yield Claim.judged(f"C2M3 + REPAIR beats MergeMany + REPAIR ({network})", above, here)


EXPERIMENT = Experiment(
    name=NAME,
    title="Sets of networks",
    source="section 4",
    about="Every method on the same sets of networks, many of each size, with REPAIR and with least squares.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    whole=False,
    findings=findings,
    claims=claims,
)
