"""Checkpoints: whole or not there, to the bit, and after a server that was really killed."""

from __future__ import annotations

import json
import logging
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping

from c2m3_fl.federation.checkpoint import Checkpoint, CheckpointError, RandomState
from simulations.engines.grid import InProcessGrid
from tests.federation.harness import CLIENTS, PHASES, ROUNDS, STOP_IN_ROUND, app, initial, run, strategy

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="flwr")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return run(tmp_path_factory.mktemp("whole") / "run.npz")


def start(checkpoint: Path, output: Path, *phase: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.federation.harness", str(checkpoint), str(output), *phase]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "phase", [pytest.param(phase, marks=() if phase == "write" else pytest.mark.slow) for phase in PHASES]
)
def test_a_killed_server_loses_at_most_the_round_and_goes_on_to_the_bit(
    phase: str, tmp_path: Path, uninterrupted: dict[str, object]
) -> None:
    checkpoint, stopped, finished = tmp_path / "run.npz", tmp_path / "stopped", tmp_path / "finished"
    with start(checkpoint, stopped, phase) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not stopped.exists():
                assert process.poll() is None, "the server ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
    assert Checkpoint.read(checkpoint).round == STOP_IN_ROUND - 1
    with start(checkpoint, finished) as process:
        assert process.wait(PATIENCE_S) == 0
    result = json.loads(finished.read_text())
    assert result.pop("done") == STOP_IN_ROUND - 1
    assert result == {key: value for key, value in uninterrupted.items() if key != "done"}


@pytest.mark.parametrize("first", range(1, ROUNDS))
def test_rounds_in_two_parts_equal_rounds_in_one(first: int, tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    run(tmp_path / "run.npz", rounds=first)
    result = run(tmp_path / "run.npz")
    assert result.pop("done") == first
    assert result == {key: value for key, value in uninterrupted.items() if key != "done"}


def test_the_history_holds_every_round(uninterrupted: dict[str, dict[str, dict[str, float]]]) -> None:
    for kind in ("train", "evaluate"):
        assert list(uninterrupted["history"][kind]) == [str(number) for number in range(1, ROUNDS + 1)]
    assert uninterrupted["history"]["train"]["1"]["c2m3-clients"] == 2


def test_a_wrappers_noise_is_in_the_checkpoint(tmp_path: Path) -> None:
    inner = strategy(tmp_path / "run.npz", moments_from="server", fraction_train=1.0)
    wrapped = DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 1.0, CLIENTS)
    result = wrapped.start(InProcessGrid(app, CLIENTS, {}), ArrayRecord(initial()), num_rounds=1)
    saved = Checkpoint.read(tmp_path / "run.npz").arrays
    assert all(np.array_equal(saved[name], array.numpy()) for name, array in result.arrays.items())


def test_an_old_run_is_not_overwritten_by_mistake(tmp_path: Path) -> None:
    run(tmp_path / "run.npz", rounds=1)
    fresh = strategy(tmp_path / "run.npz")
    with pytest.raises(CheckpointError, match="holds an earlier run: call resume"):
        fresh.configure_train(1, ArrayRecord(initial()), ConfigRecord(), InProcessGrid(app, CLIENTS, {}))


def test_resume_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint=FILE"):
        strategy(None).resume(ArrayRecord())
    path = tmp_path / "run.npz"
    begun, done = strategy(path).resume(ArrayRecord(initial()))
    assert (list(begun), done) == (list(initial()), 0)
    path.write_bytes(b"not an archive")
    with pytest.raises(CheckpointError, match="damaged"):
        strategy(path).resume(ArrayRecord())
    Checkpoint(1, {"0.weight": np.zeros(3)}).write(path)
    with pytest.raises(CheckpointError, match="does not fit the module"):
        strategy(path).resume(ArrayRecord())
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            Checkpoint.read(path)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a/b.c": np.array(3),
        "empty": np.zeros((0, 4)),
        "flags": np.array([True, False]),
        "nan": np.array([np.nan, -0.0, np.inf]),
    }
    written = Checkpoint(7, arrays, {7: {"loss": 0.1, "list": [1, 2], "nan": float("nan")}}, {7: {"accuracy": 1 / 3}})
    written.write(tmp_path / "deep" / "run.npz")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run.npz"]
    read = Checkpoint.read(tmp_path / "deep" / "run.npz")
    assert read.round == 7
    assert list(read.arrays) == list(arrays)
    for name, array in arrays.items():
        assert (read.arrays[name].dtype, read.arrays[name].shape) == (array.dtype, array.shape)
        assert read.arrays[name].tobytes() == array.tobytes()
    assert repr(read.train_metrics) == repr(written.train_metrics)
    assert read.evaluate_metrics == written.evaluate_metrics


def test_the_generators_go_on_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves a second draw behind
    np.random.standard_normal()
    Checkpoint(1, {}).write(tmp_path / "run.npz")
    expected = random.gauss(0, 1), np.random.standard_normal(), float(torch.randn(()))
    state = RandomState.capture()
    Checkpoint.read(tmp_path / "run.npz").random_state.restore()
    assert (random.gauss(0, 1), np.random.standard_normal(), float(torch.randn(()))) == expected
    state.restore()
