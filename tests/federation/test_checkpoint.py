"""Checkpoints: whole or not there, to the bit, and after a server that was really killed."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
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
from safetensors.torch import load_file

from c2m3_fl.federation.checkpoint import Checkpoint, CheckpointError, RandomState
from simulations.engines.grid import InProcessGrid
from tests.federation.harness import CLIENTS, PHASES, ROUNDS, STOP_IN_ROUND, app, initial, network, run, strategy

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="flwr")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return run(tmp_path_factory.mktemp("whole") / "run.safetensors")


def start(checkpoint: Path, output: Path, *phase: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.federation.harness", str(checkpoint), str(output), *phase]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "phase", [pytest.param(phase, marks=() if phase == "write" else pytest.mark.slow) for phase in PHASES]
)
def test_a_killed_server_loses_at_most_the_round_and_goes_on_to_the_bit(
    phase: str, tmp_path: Path, uninterrupted: dict[str, object]
) -> None:
    checkpoint, stopped, finished = tmp_path / "run.safetensors", tmp_path / "stopped", tmp_path / "finished"
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
    run(tmp_path / "run.safetensors", rounds=first)
    result = run(tmp_path / "run.safetensors")
    assert result.pop("done") == first
    assert result == {key: value for key, value in uninterrupted.items() if key != "done"}


def test_the_history_holds_every_round(uninterrupted: dict[str, dict[str, dict[str, float]]]) -> None:
    for kind in ("train", "evaluate"):
        assert list(uninterrupted["history"][kind]) == [str(number) for number in range(1, ROUNDS + 1)]
    assert uninterrupted["history"]["train"]["1"]["c2m3-clients"] == 2


def test_a_wrappers_noise_is_in_the_checkpoint(tmp_path: Path) -> None:
    inner = strategy(tmp_path / "run.safetensors", moments_from="server", fraction_train=1.0)
    wrapped = DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 1.0, CLIENTS)
    result = wrapped.start(InProcessGrid(app, CLIENTS, {}), ArrayRecord(initial()), num_rounds=1)
    saved = Checkpoint.read(tmp_path / "run.safetensors").arrays
    assert all(np.array_equal(saved[name], array.numpy()) for name, array in result.arrays.items())


def test_an_old_run_is_not_overwritten_by_mistake(tmp_path: Path) -> None:
    run(tmp_path / "run.safetensors", rounds=1)
    fresh = strategy(tmp_path / "run.safetensors")
    with pytest.raises(CheckpointError, match="holds an earlier run: call resume"):
        fresh.configure_train(1, ArrayRecord(initial()), ConfigRecord(), InProcessGrid(app, CLIENTS, {}))


def test_resume_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint=FILE"):
        strategy(None).resume(ArrayRecord())
    path = tmp_path / "run.safetensors"
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


def test_a_run_that_was_killed_after_its_last_round_still_gives_its_network(
    tmp_path: Path, uninterrupted: dict[str, object]
) -> None:
    run(tmp_path / "run.safetensors")
    again = run(tmp_path / "run.safetensors")
    assert again["done"] == ROUNDS
    assert again["digest"] == uninterrupted["digest"]
    network_ = network()
    network_.load_state_dict(load_file(tmp_path / "run.safetensors"))
    parts = [ArrayRecord(network_.state_dict())[name].data for name in network_.state_dict()]
    assert hashlib.sha256(b"".join(parts)).hexdigest() == uninterrupted["digest"]


def test_a_file_is_one_runs_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first, second = strategy(path), strategy(path)
    first.resume(ArrayRecord(initial()))
    with pytest.raises(CheckpointError, match="another run's, which is going on"):
        second.resume(ArrayRecord(initial()))
    with pytest.raises(CheckpointError, match="another run's, which is going on"):
        second.configure_train(1, ArrayRecord(initial()), ConfigRecord(), InProcessGrid(app, CLIENTS, {}))
    first.start(InProcessGrid(app, CLIENTS, {}), ArrayRecord(initial()), num_rounds=1)
    assert second.resume(ArrayRecord(initial()))[1] == 1  # a run that has ended lets go
    with start(path, tmp_path / "other") as process:
        assert process.wait(PATIENCE_S) != 0
    assert Checkpoint.read(path).round == 1


@pytest.mark.parametrize("where", ["missing/run", "file/run", "folder"])
def test_where_nothing_can_be_written_is_known_before_the_run(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    if where == "missing/run":
        strategy(tmp_path / where)  # a folder is made
        assert list((tmp_path / "missing").iterdir()) == []
    else:
        with pytest.raises(CheckpointError, match=r"checkpoints cannot be written to .*: name a file"):
            strategy(tmp_path / where)


def _full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_known_before_the_run_and_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flower_log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.safetensors"
    run(path, rounds=1)
    server = strategy(path)
    arrays, _ = server.resume(ArrayRecord(initial()))
    monkeypatch.setattr("c2m3_fl.federation.checkpoint.os.fsync", _full)
    with pytest.raises(CheckpointError, match=f"{os.strerror(errno.ENOSPC)}.*with room for it"):
        strategy(tmp_path / "other" / "run.safetensors")
    assert list((tmp_path / "other").iterdir()) == []
    result = server.start(InProcessGrid(app, CLIENTS, {}), arrays, num_rounds=2)
    assert len(result.train_metrics_clientapp) == 2
    assert "Round 3 is not written" in flower_log.text
    assert Checkpoint.read(path).round == 1
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


class Other(type(network())):  # type: ignore[misc]
    pass


CHANGES: dict[str, dict[str, object]] = {
    "matcher": {"matcher": "identity"},
    "repair": {"repair": "repair-pooled"},
    "robust": {"robust": "median"},
    "guard": {"guard": True},
    "exchanges": {"exchanges": 1},
    "server_momentum": {"server_momentum": 0.5},
    "module": {"module": lambda: Other(*network())},
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_that_changed_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(path, rounds=1)
    with pytest.raises(CheckpointError, match=rf"had other options: {name} was .* and is "):
        strategy(path, **CHANGES[name]).resume(ArrayRecord(initial()))
    assert strategy(path, **CHANGES[name]).resume(ArrayRecord(initial()), accept_changes=True)[1] == 1
    assert strategy(path).resume(ArrayRecord(initial()))[1] == 1


@pytest.mark.parametrize("by", ["-loss", "loss"])
def test_the_best_round_is_kept_besides_the_last(by: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(path, rounds=2, keep_best=by)
    result = run(path, keep_best=by)
    losses = {int(number): metrics["loss"] for number, metrics in result["history"]["evaluate"].items()}
    wanted = (min if by == "-loss" else max)(losses, key=lambda number: losses[number])
    assert Checkpoint.read(path).best == (wanted, losses[wanted])
    best = load_file(tmp_path / "run.best.safetensors")
    whole = tmp_path / "whole.safetensors"
    run(whole, rounds=wanted)
    assert all(torch.equal(best[name], tensor) for name, tensor in load_file(whole).items())


def test_keeping_the_best_needs_a_file() -> None:
    with pytest.raises(ValueError, match="keep_best needs checkpoint=FILE"):
        strategy(None, keep_best="loss")


def test_a_file_of_an_earlier_release_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    np.savez(path, document=np.zeros(3))
    with pytest.raises(CheckpointError, match="of an earlier release"):
        strategy(path).resume(ArrayRecord(initial()))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a/b.c": np.array(3),
        "empty": np.zeros((0, 4)),
        "flags": np.array([True, False]),
        "nan": np.array([np.nan, -0.0, np.inf]),
    }
    written = Checkpoint(7, arrays, {7: {"loss": 0.1, "list": [1, 2], "nan": float("nan")}}, {7: {"accuracy": 1 / 3}})
    written.write(tmp_path / "deep" / "run.safetensors")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run.safetensors"]
    read = Checkpoint.read(tmp_path / "deep" / "run.safetensors")
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
    Checkpoint(1, {}).write(tmp_path / "run.safetensors")
    expected = random.gauss(0, 1), np.random.standard_normal(), float(torch.randn(()))
    state = RandomState.capture()
    Checkpoint.read(tmp_path / "run.safetensors").random_state.restore()
    assert (random.gauss(0, 1), np.random.standard_normal(), float(torch.randn(()))) == expected
    state.restore()
