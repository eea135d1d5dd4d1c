"""Files that cannot be merged are refused by their name, in one line, before anything is written."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c2m3_fl.cli import main
from c2m3_fl.cli.errors import InputError
from c2m3_fl.cli.reading import read_tensors
from tests.cli.networks import PERCEPTRON, Hostile, labelled, perceptron, save, weights


def _hostile(path: Path) -> None:
    torch.save({"state_dict": weights(0), "note": Hostile(path.with_name("ran"))}, path)


def _hostile_plain_pickle(path: Path, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps({"note": Hostile(path.with_name("ran"))}, protocol=protocol))


def _hostile_in_disguise(path: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile(path.with_name("ran"))))


def _cut(path: Path) -> None:
    torch.save(weights(1), path)
    path.write_bytes(path.read_bytes()[:-200])


def _cut_safetensors(path: Path) -> None:
    save(path, weights(1))
    path.write_bytes(path.read_bytes()[:-20])


def _changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tensors = weights(1)
        save(path, {**tensors, name: change(tensors[name])})

    return write


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0] = float("nan")
    return tensor


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "hostile": (".pt", _hostile, "could run code"),
    "hostile plain pickle": (".pt", _hostile_plain_pickle, "could run code"),
    "hostile newer pickle": (".pt", lambda path: _hostile_plain_pickle(path, 4), "damaged"),
    "hostile with another suffix": (".safetensors", _hostile_in_disguise, "damaged"),
    "empty": (".pt", lambda path: path.write_bytes(b""), "damaged"),
    "empty safetensors": (".safetensors", lambda path: path.write_bytes(b""), "damaged"),
    "text": (".pth", lambda path: path.write_text("hello"), "damaged"),
    "cut short": (".pt", _cut, "damaged"),
    "cut short safetensors": (".safetensors", _cut_safetensors, "damaged"),
    "no state dict": (".pt", lambda path: torch.save({"epoch": 3, "loss": 0.1}, path), "its keys are epoch, loss"),
    "a list": (".pt", lambda path: torch.save([1, 2], path), "no state dict"),
    "no tensors": (".pt", lambda path: torch.save({"state_dict": {}}, path), "no state dict"),
    "half of it no tensors": (".pt", lambda path: torch.save({**weights(1), "x": 3}, path), "'x' is no tensor"),
    "sparse": (".pt", lambda path: torch.save({"0.weight": torch.eye(3).to_sparse()}, path), "sparse"),
    "another width": (".pt", lambda path: torch.save(perceptron(9).state_dict(), path), "another network's"),
    "another network": (".pt", lambda path: torch.save({"conv.weight": torch.ones(2)}, path), "another network's"),
    "a tensor too many": (".pt", lambda path: torch.save({**weights(1), "x": torch.ones(2)}, path), "'x'"),
    "another dtype": (".pt", _changed("2.bias", lambda tensor: tensor.double()), "torch.float64, not torch.float32"),
    "not finite": (".pt", _changed("0.weight", _nan), "NaN"),
}


# The other commands read files by the same code. Of two dtypes the second file's is the odd one.
_CASES = [
    *(("merge", case, first) for case in BAD for first in (True, False) if not (first and case == "another dtype")),
    *((command, case, False) for command in ("align", "barrier", "compare") for case in ("hostile", "another dtype")),
]


@pytest.mark.parametrize(("command", "case", "first"), _CASES)
def test_bad_files(command: str, case: str, first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suffix, write, message = BAD[case]
    bad = tmp_path / f"bad{suffix}"
    write(bad)
    good = save(tmp_path / "good.pt", weights(0))
    files = [str(bad), good] if first else [good, str(bad)]
    outputs = {"merge": ["-o", str(tmp_path / "m.pt")], "align": ["-o", str(tmp_path / "m.json")]}
    data = ["--data", labelled(tmp_path, weights(0))] if command == "barrier" else ["--input", "1,6"]
    assert main([command, PERCEPTRON, *files, *outputs.get(command, []), *data]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"c2m3: {bad}")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "m.pt").exists()


def test_the_hostile_file_is_hostile(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    _hostile(tmp_path / "bad.pt")
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@given(st.binary(max_size=200), st.sampled_from([".pt", ".safetensors"]), st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, suffix: str, within: bool) -> None:
    path = tmp_path / f"file{suffix}"
    save(path, weights(0))
    whole = bytearray(path.read_bytes())
    if within:  # a whole file with some bytes changed
        at = len(content) * 7 % len(whole)
        whole[at : at + len(content)] = content
    path.write_bytes(bytes(whole) if within else content)
    named = pytest.raises(InputError, match=re.escape(str(path)))
    with contextlib.suppress(pytest.fail.Exception), named:  # the content may be whole after all
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_tensors(path).values())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((4, 6), np.float32), "y": np.zeros(3, np.int64)}, "4 inputs x and 3 targets y"),
        ({"z": np.ones((4, 6)), "w": np.ones(3)}, "no array x or x_train; its arrays are z, w"),
        ({"x": np.array([{}, {}], dtype=object)}, "damaged"),
        ({"x": np.array(["a", "b"])}, "not of numbers"),
        ({"x": np.full((4, 6), np.inf)}, "NaN or infinite"),
        ({"x": np.ones((0, 6))}, "no example"),
        ({"x": np.ones((4, 5), np.float32)}, "fails"),
    ],
)
def test_bad_data(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays, allow_pickle=True)
    files = [save(tmp_path / f"{seed}.pt", weights(seed)) for seed in range(2)]
    arguments = ["--calibration", str(tmp_path / "bad.npz"), "--input", "1,6", "-o", str(tmp_path / "m.pt")]
    assert main(["merge", PERCEPTRON, *files, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "1,2,3"], "3 numbers for 2 files"),
        (["--weights", "1,x"], "not numbers"),
        (["--weights", "1,-1"], "1.pt"),
        (["--weights", "0,0"], "zero"),
        (["--device", "nonsense"], "no device"),
        (["--repair", "nonsense"], "repair"),
        (["--matcher", "nonsense"], "frank-wolfe"),
        (["--group-size", "1"], "group-size"),
        (["--key", "model"], "has no 'model'"),
    ],
)
def test_bad_options(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [save(tmp_path / f"{seed}.pt", weights(seed)) for seed in range(2)]
    assert main(["merge", PERCEPTRON, *files, "--input", "1,6", "-o", str(tmp_path / "m.pt"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not os.path.exists(tmp_path / "m.pt")


def test_without_data_shape_or_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [save(tmp_path / f"{seed}.pt", weights(seed)) for seed in range(2)]
    assert main(["merge", PERCEPTRON, *files, "-o", str(tmp_path / "m.pt")]) == 2
    assert "--input SHAPE" in capsys.readouterr().err
    assert main(["explain", PERCEPTRON, "--input", "1,6", "--output", str(tmp_path / "spec.json")]) == 0
    spec = ["--spec", str(tmp_path / "spec.json")]
    assert main(["merge", PERCEPTRON, *files, "-o", str(tmp_path / "m.pt"), *spec]) == 0
    (tmp_path / "spec.json").write_text("{}")
    assert main(["merge", PERCEPTRON, *files, "-o", str(tmp_path / "n.pt"), *spec]) == 2
    assert "spec.json" in capsys.readouterr().err
