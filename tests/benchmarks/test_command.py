"""The matching benchmark as a command, on networks of eight units and random images."""

from __future__ import annotations

import json
import statistics
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from benchmarks import matching, sets

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 600), ("test", 10_000)):
        arrays[f"x_{part}"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    np.savez(tmp_path / "mnist.npz", **arrays)
    places = ["--data", str(tmp_path), "--cache", str(tmp_path / "cache"), "--docs", str(tmp_path / "docs")]
    return [*places, "--families", "mlp8", "--clients", "2", "3"]


def test_rows_are_added_to_those_measured_before(run: list[str], tmp_path: Path) -> None:
    matching.main([*run, "--matchers", "default", "--limit"])
    matching.main([*run, "--matchers", "merge-many", "blocks-4-ascent"])
    rows = json.loads((tmp_path / "docs/results/matching.json").read_text())["rows"]
    matchers = ["blocks-4-ascent", "default", "merge-many"]
    assert [(row["clients"], row["matcher"]) for row in rows] == [(n, name) for n in (2, 3) for name in matchers]
    objectives = {row["matcher"]: row["objective"] for row in rows if row["clients"] == 2}
    assert objectives["default"] >= objectives["blocks-4-ascent"]
    assert f"| mlp8 | 2 | {objectives['default']:.2f} |" in (tmp_path / "docs/matching.md").read_text()
    page = (tmp_path / "docs/matching-cases.md").read_text()
    assert all(f"| {row['clients']} | {row['matcher']} | {row['objective']:.2f} |" in page for row in rows)
    assert (tmp_path / "docs/figures/matching-mlp8.png").is_file()
    assert {row["matcher"] for row in rows if row["product_seconds"] is not None} == {"default"}


def test_profile_names_the_products_and_writes_nothing(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matching.main([*run, "--profile"])
    assert "aten::bmm" in capsys.readouterr().out
    assert not (tmp_path / "docs").exists()


def test_sets_are_measured_once_and_compared_set_by_set(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets.main([*run, "--networks", "3"])
    rows = json.loads((tmp_path / "docs/results/sets.json").read_text())["rows"]
    assert [tuple(row["networks"]) for row in rows[::2]] == [(0, 1), (0, 1, 2), (0, 2), (1, 2)]
    pairs = [rows[number : number + 2] for number in range(0, len(rows), 2) if len(rows[number]["networks"]) == 2]
    gains = [100 * (default["objective"] / other["objective"] - 1) for default, other in pairs]
    page = (tmp_path / "docs/matching.md").read_text()
    assert f"| mlp8 | 2 | 3 | {statistics.mean(gains):+.2f} ± {statistics.stdev(gains):.2f} | " in page
    capsys.readouterr()
    sets.main([*run, "--networks", "3"])
    assert not capsys.readouterr().out


def test_subsets_are_spread_over_all() -> None:
    assert sets.subsets(5, 3, 10) == list(combinations(range(5), 3))
    assert sets.subsets(6, 2, 3) == [(0, 1), (1, 2), (2, 4)]
