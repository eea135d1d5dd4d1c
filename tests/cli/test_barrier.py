from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from c2m3_fl.cli import main
from tests.cli.networks import PERCEPTRON, labelled, planted, save, weights


def test_no_barrier_is_left_between_permuted_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, data = planted(tmp_path), labelled(tmp_path, weights(0))
    picture = tmp_path / "line.png"
    arguments = ["barrier", PERCEPTRON, *files, "--data", data, "--points", "5", "--picture", str(picture)]
    assert main([*arguments, "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert lines["before"]["barrier"] > 0.01
    assert lines["after"]["barrier"] < 1e-6
    assert lines["before"]["positions"] == [0, 0.25, 0.5, 0.75, 1]
    assert lines["after"]["accuracy"] == [1.0] * 5  # the classes are the network's own
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert "barrier" in capsys.readouterr().out.splitlines()[-1]


def test_quantities_have_a_squared_error_and_no_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = planted(tmp_path)
    inputs = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=inputs, y=np.zeros((10, 3), np.float32))
    arguments = ["barrier", PERCEPTRON, *files, "--data", str(tmp_path / "data.npz"), "--points", "3"]
    assert main([*arguments, "--json"]) == 0
    line = json.loads(capsys.readouterr().out)["after"]
    assert line["accuracy"] is None
    first, second = inputs @ weights(0)["0.weight"].numpy().T + weights(0)["0.bias"].numpy(), weights(0)
    outputs = np.maximum(first, 0) @ second["2.weight"].numpy().T + second["2.bias"].numpy()
    assert line["loss"][0] == pytest.approx(float((outputs**2).mean()), rel=1e-5)
    assert main(arguments) == 0
    assert "accuracy" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "targets"),
        (np.array([0, 1, 2, 3]), "no class scores for classes 0 to 3"),
        (np.array([0, -1, 2, 1]), "no class scores for classes -1 to 2"),
        (np.ones((4, 2), np.float32), "do not fit"),
    ],
)
def test_targets_that_do_not_fit(
    targets: np.ndarray | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {"x": np.ones((4, 6), np.float32)} | ({} if targets is None else {"y": targets})
    np.savez(tmp_path / "data.npz", **arrays)
    assert main(["barrier", PERCEPTRON, *planted(tmp_path), "--data", str(tmp_path / "data.npz")]) == 2
    assert message in capsys.readouterr().err


def test_a_line_has_two_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = labelled(tmp_path, weights(0))
    assert main(["barrier", PERCEPTRON, *planted(tmp_path, 3), "--data", data]) == 2
    assert "two ends" in capsys.readouterr().err
    pair = [save(tmp_path / "a.pt", weights(0)), save(tmp_path / "b.pt", weights(1))]
    assert main(["barrier", PERCEPTRON, *pair, "--data", data, "--picture", str(tmp_path / "x.nonsense")]) == 2
    assert "x.nonsense" in capsys.readouterr().err
