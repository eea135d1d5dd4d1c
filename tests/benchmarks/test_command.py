"""The matching benchmark as a command, on networks of eight units and random images."""

from __future__ import annotations

import json
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


def test_sets_are_measured_once_for_each_version_of_the_source(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured() -> list[tuple[int, ...]]:
        sets.main([*run, "--networks", "3"])
        return [tuple(json.loads(line)["networks"]) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]

    assert measured() == [each for each in [(0, 1), (0, 2), (1, 2), (0, 1, 2)] for _ in ("default", "merge-many")]
    assert not measured()
    monkeypatch.setattr(sets, "code_fingerprint", lambda: "another")
    assert len(measured()) == 8
    page = (tmp_path / "docs/matching.md").read_text()
    assert "| mlp8 | 2 | 3 |" in page
    assert "| mlp8 | 3 | 1 |" in page


def test_table_of_sets_shows_paired_differences() -> None:
    def row(objective: float, accuracy: float, repaired: float, loss: float) -> dict[str, float]:
        return {"objective": objective, "accuracy": accuracy, "repaired_accuracy": repaired, "repaired_loss": loss}

    rows = {
        ("a", (0, 1), "default"): row(101.0, 0.50, 0.80, 0.4),
        ("a", (0, 1), "merge-many"): row(100.0, 0.52, 0.79, 0.5),
        ("a", (0, 2), "default"): row(206.0, 0.60, 0.70, 0.4),
        ("a", (0, 2), "merge-many"): row(200.0, 0.50, 0.72, 0.3),
        ("a", (1, 2), "default"): row(1.0, 0.1, 0.1, 9.0),  # without its pair: left out
        ("b", (0, 1, 2), "default"): row(99.0, 0.3, 0.4, 1.0),
        ("b", (0, 1, 2), "merge-many"): row(100.0, 0.3, 0.4, 1.5),
    }
    _, _, first, second = sets.table(rows)
    assert first == "| a | 2 | 2 | +2.00 ± 1.41 | 2 | +4.0 ± 8.5 | 1 | -0.5 ± 2.1 | 1 | +0.000 ± 0.141 |"
    assert second == "| b | 3 | 1 | -1.00 | 0 | +0.0 | 0 | +0.0 | 0 | -0.500 |"


def test_subsets_are_spread_over_all() -> None:
    assert sets.subsets(5, 3, 10) == list(combinations(range(5), 3))
    assert sets.subsets(6, 2, 3) == [(0, 1), (1, 2), (2, 4)]
