"""The study of activation matching: which networks it takes, and what its table says."""

from __future__ import annotations

from itertools import combinations

from benchmarks.activations import consecutive, table


def test_sets_are_disjoint_while_there_are_enough_networks_and_never_repeat() -> None:
    assert all(not set(a) & set(b) for a, b in combinations(consecutive(20, 5, 4), 2))
    assert list(consecutive(3, 3, 4)) == [(0, 1, 2)]
    assert all(len(set(each)) == 2 and max(each) < 5 for each in consecutive(5, 2, 5))


def test_table_shows_means_and_the_spread_of_paired_differences() -> None:
    def row(networks: list[int], share: float, accuracy: float) -> dict[str, object]:
        by = {"share": share, "calibration": "own", "images": 8}
        quality = dict.fromkeys(("loss", "repaired_accuracy", "repaired_loss", "cpu_seconds"), 0.5)
        return {"family": "mlp8", "networks": networks, "by": by, "accuracy": accuracy, **quality}

    rows = [row([0, 1], 0.0, 0.90), row([2, 3], 0.0, 0.80), row([0, 1], 0.1, 0.91), row([2, 3], 0.1, 0.78)]
    _, _, plain, both = table(rows).splitlines()
    assert "| mlp8 | 2 | 2 |  | 0 | 85.0 |" in plain
    assert "| mlp8 | 2 | 2 | 8 own | 0.1 | 84.5 (-2.0 to +1.0) |" in both
