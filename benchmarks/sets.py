"""Many sets of networks: how far one matcher's merged networks are from another's, beyond the luck of one set.

Run ``python -m benchmarks sets --data FOLDER``: results go to ``docs/results/sets.json``, beside those that are there, and
a table of them to ``docs/matching.md``. A case is measured again only if the package's source has changed since.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch

from benchmarks.endpoints import Family, Merged
from benchmarks.matching import DOCS, MATCHERS, VARIANTS, environment
from simulations.laboratory.laboratory import code_fingerprint
from simulations.laboratory.pages import replace_block

_PAIR = ("default", "merge-many")  # the table's


@dataclass(frozen=True, kw_only=True)
class Row(Merged):
    """One matcher on one set of networks, by the package's source of that name."""

    family: str
    networks: list[int]
    matcher: str
    code: str


def subsets(count: int, clients: int, most: int) -> list[tuple[int, ...]]:
    """Subsets of networks, all if there are at most `most`, else as many, spread evenly over the list of all."""
    every = list(combinations(range(count), clients))
    return every if len(every) <= most else [every[len(every) * k // most] for k in range(most)]


Key = tuple[str, tuple[int, ...], str]
"""Family, networks, matcher."""


def table(rows: Mapping[Key, Mapping[str, Any]]) -> list[str]:
    """The default less MergeMany, set by set: mean and standard deviation of the differences, in Markdown."""
    pairs: dict[tuple[str, int], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for (family, networks, matcher), row in rows.items():
        other = rows.get((family, networks, _PAIR[1]))
        if matcher == _PAIR[0] and other is not None:
            pairs.setdefault((family, len(networks)), []).append((row, other))
    lines = [
        "| networks | n | sets | objective, % | above in | accuracy, points | above in | "
        "after REPAIR | above in | loss after REPAIR |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (family, clients), found in sorted(pairs.items()):
        objective = [100.0 * (a["objective"] / b["objective"] - 1.0) for a, b in found]
        accuracy = [100.0 * (a["accuracy"] - b["accuracy"]) for a, b in found]
        repaired = [100.0 * (a["repaired_accuracy"] - b["repaired_accuracy"]) for a, b in found]
        loss = [a["repaired_loss"] - b["repaired_loss"] for a, b in found]
        lines.append(
            f"| {family} | {clients} | {len(found)} | {_spread(objective, 2)} | {_above(objective)} | "
            f"{_spread(accuracy, 1)} | {_above(accuracy)} | {_spread(repaired, 1)} | {_above(repaired)} | "
            f"{_spread(loss, 3)} |"
        )
    return lines


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):+.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _above(values: Sequence[float]) -> int:
    return sum(value > 0.0 for value in values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not there yet, write the JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST and cifar10.npz")
    parser.add_argument("--cache", type=Path, default=Path("cache/endpoints"), help="folder of the trained networks")
    parser.add_argument("--families", nargs="*", default=["resnet1"])
    parser.add_argument("--networks", type=int, default=5, help="endpoints to draw sets from")
    parser.add_argument("--clients", nargs="+", type=int, default=[2, 3, 4, 5])
    parser.add_argument("--most", type=int, default=10, help="sets of one size at most")
    parser.add_argument("--matchers", nargs="+", default=list(_PAIR), choices=[*MATCHERS, *VARIANTS], metavar="NAME")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page and of results/")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    output = options.docs / "results" / "sets.json"
    before = json.loads(output.read_text())["rows"] if output.exists() else []
    rows: dict[Key, dict[str, Any]] = {(row["family"], tuple(row["networks"]), row["matcher"]): row for row in before}
    families = [Family(name, options.data, options.cache) for name in options.families]
    for family, clients in product(families, options.clients):
        for networks, matcher in product(subsets(options.networks, clients, options.most), options.matchers):
            key = (family.name, networks, matcher)
            if key in rows and rows[key]["code"] == code_fingerprint():
                continue
            merged = family.merge(networks, (MATCHERS | VARIANTS)[matcher]())
            row = Row(
                family=family.name,
                networks=list(networks),
                matcher=matcher,
                code=code_fingerprint(),
                **asdict(merged),
            )
            rows[key] = asdict(row)
            print(json.dumps(rows[key]), flush=True)
            output.parent.mkdir(parents=True, exist_ok=True)
            kept = [rows[each] for each in sorted(rows)]
            output.write_text(json.dumps({"environment": environment(), "rows": kept}, indent=1) + "\n")
    replace_block(options.docs / "matching.md", "matching-sets", table(rows), "Matching")


if __name__ == "__main__":
    main()
