"""Networks matched by their activations on a calibration set, beside their parameters or in place of them.

Run ``python -m benchmarks activations --data FOLDER``: results go to ``docs/results/activations.json``, beside those that
are there, and a table of them is printed. Sets of networks are matched by their parameters, and with shares of activations
over calibration sets of several sizes; what is merged is judged on the test set before and after REPAIR, which sees the same
images in every row.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.endpoints import Family, Merged
from benchmarks.matching import DOCS, environment
from c2m3_fl.matching import ActivationMatcher, Matcher, UniverseMatcher

_BATCH = 64


@dataclass(frozen=True)
class By:
    """What networks are matched by.

    Attributes
    ----------
    share
        See `ActivationMatcher`; 0 for the parameters alone.
    calibration
        ``"own"``, the last training images of the networks' data set, or ``"other"``, those of the other data set.
    images
        How many.
    """

    share: float
    calibration: str = "own"
    images: int = 1024


@dataclass(frozen=True, kw_only=True)
class Row(Merged):
    """One set of networks, matched and merged."""

    family: str
    networks: list[int]
    by: By


def measure(family: Family, networks: Sequence[int], by: By) -> Row:
    """Match, average, repair, judge."""
    merged = family.merge(networks, _matcher(family, by))
    return Row(family=family.name, networks=list(networks), by=by, **asdict(merged))


def _matcher(family: Family, by: By) -> Matcher:
    if by.share == 0:
        return UniverseMatcher()
    images = family.split("train", by.images)[0] if by.calibration == "own" else family.foreign(by.images)
    return ActivationMatcher(family.network(), torch.split(images, _BATCH), by.share)


def consecutive(count: int, clients: int, wanted: int) -> Iterable[tuple[int, ...]]:
    """Different sets of consecutive networks, disjoint as long as there are enough of them."""
    return dict.fromkeys(tuple(sorted((k * clients + i) % count for i in range(clients))) for k in range(wanted))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the sets; in brackets the least and the greatest difference from matching by parameters alone."""
    plain = {(row["family"], *row["networks"]): row for row in rows if row["by"]["share"] == 0}
    cases: dict[tuple[str, int, str, int, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        by = row["by"]
        key = (row["family"], len(row["networks"]), by["calibration"], by["images"], by["share"])
        if (row["family"], *row["networks"]) in plain:
            cases.setdefault(key, []).append(row)
    lines = [
        "| networks | n | sets | images | share | accuracy, % | loss | after REPAIR, % | loss | CPU-seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (family, clients, calibration, images, share), found in sorted(cases.items()):
        cells = []
        for quantity, scale, digits in _QUANTITIES:
            values = [row[quantity] * scale for row in found]
            gains = [
                v - plain[family, *row["networks"]][quantity] * scale for v, row in zip(values, found, strict=True)
            ]
            spread = f" ({min(gains):+.{digits}f} to {max(gains):+.{digits}f})" if share else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        seconds = statistics.mean(row["cpu_seconds"] for row in found)
        shown = f"{images} {calibration}" if share else ""
        lines.append(
            f"| {family} | {clients} | {len(found)} | {shown} | {share:g} | {' | '.join(cells)} | {seconds:.1f} |"
        )
    return "\n".join(lines)


_QUANTITIES = (("accuracy", 100, 1), ("loss", 1, 3), ("repaired_accuracy", 100, 1), ("repaired_loss", 1, 3))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not there yet, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST and cifar10.npz")
    parser.add_argument("--cache", type=Path, default=Path("endpoints"), help="folder of the trained networks")
    parser.add_argument("--family", default="mlp128")
    parser.add_argument("--networks", type=int, default=20, help="endpoints to draw sets from")
    parser.add_argument("--clients", nargs="*", type=int, default=[2, 3, 5, 10])
    parser.add_argument("--sets", type=int, default=4, help="most sets of each size")
    parser.add_argument("--shares", nargs="+", type=float, default=[0, 0.1, 0.3, 1, 3, math.inf])
    parser.add_argument("--calibrations", nargs="+", default=["own"], choices=["own", "other"])
    parser.add_argument("--images", nargs="+", type=int, default=[1024])
    parser.add_argument("--output", type=Path, default=DOCS / "results" / "activations.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    done = {json.dumps([row["family"], row["networks"], row["by"]]) for row in rows}
    ways = [
        By(share, calibration, images) if share else By(0.0)
        for calibration in options.calibrations
        for images in options.images
        for share in options.shares
    ]
    family = Family(options.family, options.data, options.cache)
    for clients in options.clients:
        for networks in consecutive(options.networks, clients, options.sets):
            for by in dict.fromkeys(ways):
                if json.dumps([options.family, networks, asdict(by)]) not in done:
                    rows.append(asdict(measure(family, networks, by)))
                    options.output.parent.mkdir(parents=True, exist_ok=True)
                    options.output.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
