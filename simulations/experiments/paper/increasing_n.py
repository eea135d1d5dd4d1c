"""Increasing n (Figure 7): the merged network as more and more networks are merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from simulations.experiments.paper import published
from simulations.experiments.paper.merging import endpoint_cells, merged, stages_of
from simulations.laboratory.drawing import COLOURS, LABELS, grid, label
from simulations.laboratory.experiment import (
    Claim,
    Experiment,
    Picture,
    Table,
    networks,
    percent,
)
from simulations.laboratory.laboratory import METHODS, Laboratory
from simulations.laboratory.ledger import Cell, Record, select

NAME = "increasing-n"
_LINES = {"average": "--", "repaired": "-", "refitted": ":"}


def cells(laboratory: Laboratory) -> Iterator[Cell]:
    """The networks of seeds 0 .. n - 1 merged, for every n of the scale, and each network by itself."""
    for network, numbers in laboratory.scale.many.items():
        yield from endpoint_cells(laboratory, network, range(max(numbers)))
        for n, (method, matcher) in product(numbers, METHODS.items()):
            yield laboratory.cell(network, range(n), {"n": n, "method": method}, merged, matcher=matcher)


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Test accuracy by n."""
    for network in networks(records):
        own = [r for r in select(records, network=network) if r.about["method"] != "endpoint"]
        numbers = sorted({r.about["n"] for r in own})
        ends = [r.values["test_accuracy"] for r in select(records, network=network, method="endpoint")]
        floor = f"above {percent(published.INCREASING_N_MLP_ACCURACY_FLOOR)}" if network == "mlp-mnist" else "a curve"
        stages = stages_of(own)
        columns = ("n", *(f"{LABELS[m]}{r}" for m, r in product(METHODS, stages.values())), "the networks", "paper")
        rows = []
        for n in numbers:
            cells = []
            for method, stage in product(METHODS, stages):
                found = select(own, n=n, method=method)
                cells.append(percent(found[0].values[stage]["test_accuracy"], 2) if found else "-")
            rows.append((str(n), *cells, percent(sum(ends[:n]) / n, 2), floor))
        yield Table(f"{network}: test accuracy of the merged network", columns, tuple(rows))


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Accuracy and loss against n, and the accuracy of the matched networks by itself."""
    for network in networks(records):
        figure, (whole, matched, loss) = grid(3, width=3.7)
        own = select(records, network=network)
        for method, (stage, words) in product(METHODS, stages_of(own).items()):
            for axes, quantity, factor in (
                (whole, "test_accuracy", 100.0),
                (matched, "test_accuracy", 100.0),
                (loss, "test_loss", 1.0),
            ):
                points = sorted((r.about["n"], factor * r.values[stage][quantity]) for r in select(own, method=method))
                if points and not (axes is matched and method == "naive"):
                    axes.plot(
                        *zip(*points, strict=True),
                        color=COLOURS[method],
                        linestyle=_LINES[stage],
                        marker="o",
                        markersize=3,
                        label=LABELS[method] + words,
                    )
        if network == "mlp-mnist":
            floor = 100 * published.INCREASING_N_MLP_ACCURACY_FLOOR
            matched.axhline(floor, color="#c0392b", linewidth=0.8, linestyle=":", label="paper: C2M3 stays above")
            matched.legend(fontsize=7)
        label(whole, f"{network}: accuracy", "number of networks n", "test accuracy (%)")
        label(matched, f"{network}: accuracy when matched", "number of networks n", "test accuracy (%)")
        label(loss, f"{network}: loss", "number of networks n", "test loss (nats)")
        loss.legend(fontsize=7)
        yield Picture(
            f"{NAME}-{network}", "Merged network's test accuracy and loss as the number of networks n grows.", figure
        )


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    """That C2M3 is above MergeMany from n = 3, and that perceptrons hardly lose by being merged."""
    for network in networks(records):
        ours, theirs = (
            {
                r.about["n"]: r.values["repaired"]["test_accuracy"]
                for r in select(records, network=network, method=method)
            }
            for method in ("c2m3", "merge-many")
        )
        both = [n for n in sorted(ours) if n >= 3 and n in theirs]
        if both:
            listed = ", ".join(f"n = {n} {100 * (ours[n] - theirs[n]):+.2f}" for n in both)
            statement = f"With three networks and more C2M3 is above MergeMany, after REPAIR ({network})"
            yield Claim.judged(statement, [ours[n] > theirs[n] for n in both], f"points: {listed}")
        if network == "mlp-mnist" and ours:
            ends = [r.values["test_accuracy"] for r in select(records, network=network, method="endpoint")]
            floor = published.INCREASING_N_MLP_ACCURACY_FLOOR
            yield Claim.judged(
                f"C2M3 stays above {percent(floor)} as perceptrons on MNIST are added, up to 20",
                [value >= floor for value in ours.values()],
                f"{percent(min(ours.values()), 2)} at the lowest, with REPAIR, up to n = {max(ours)}; the networks "
                f"themselves have {percent(sum(ends) / len(ends), 2)}",
            )


EXPERIMENT = Experiment(
    name=NAME,
    title="Increasing n",
    source="Figure 7",
    about="The networks of seeds 0 to n - 1 are merged, for growing n: by plain averaging, by MergeMany and by C2M3.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    claims=claims,
)
