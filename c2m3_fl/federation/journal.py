"""One run's checkpoint file: tried out before the run, locked during it, and refused where it is another run's."""

from __future__ import annotations

import math
import os
import re
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from logging import ERROR
from pathlib import Path

import numpy as np
from flwr.common import log
from torch import nn

from c2m3_fl.federation.checkpoint import Checkpoint, CheckpointError, write_whole
from c2m3_fl.options import MergeOptions

try:
    import fcntl
except ImportError:  # Windows: two runs on one file are not told there
    fcntl = None  # type: ignore[assignment]

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


class Journal:
    """The checkpoint file of one run.

    Parameters
    ----------
    path
        The file. That of the best round lies beside it (`best_path`).
    options
        By name, how the run merges: a file with others is refused.
    keep_best
        Name of the aggregated metric whose best round is kept too, the larger the better; with a minus before it, the
        smaller. None to keep the last round only.
    """

    def __init__(self, path: Path, options: Mapping[str, str], keep_best: str | None = None) -> None:
        self.path = path
        self.options = dict(options)
        self.best: tuple[int, float] | None = None
        self._keep_best = keep_best
        self._lock: weakref.finalize[[int], Journal] | None = None

    @property
    def best_path(self) -> Path:
        """Where the best round's network lies, in safetensors."""
        return self.path.with_name(f"{self.path.stem}.best.safetensors")

    def try_out(self, size: int) -> None:
        """Write a file of the size, in bytes, that each round will write, and remove it.

        Raises
        ------
        CheckpointError
            If that fails.
        """
        trial = self.path.with_name(f".{self.path.name}.trial")
        try:
            if self.path.is_dir():
                raise IsADirectoryError("it is a folder")
            write_whole(trial, {"trial": np.zeros(size, dtype=np.uint8)}, {})
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self.path} ({error}): name a file in a folder that is writable, on a "
                "disk with room for it"
            ) from error
        finally:
            with suppress(OSError):
                trial.unlink(missing_ok=True)

    def hold(self) -> None:
        """Lock the file for this run, until `release` or the end of the process.

        Raises
        ------
        CheckpointError
            If another run holds it.
        """
        if fcntl is None or (self._lock is not None and self._lock.alive):
            return
        descriptor = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise CheckpointError(
                f"{self.path} is another run's, which is going on: end that one, or name another file"
            ) from error
        self._lock = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """Let others have the file."""
        if self._lock is not None:
            self._lock()

    def read(self, *, accept_changes: bool) -> Checkpoint:
        """The checkpoint.

        Raises
        ------
        CheckpointError
            If it cannot be read, or the run that wrote it merged otherwise and changes are not accepted.
        """
        saved = Checkpoint.read(self.path)
        changed = [name for name in self.options if saved.options.get(name, self.options[name]) != self.options[name]]
        if changed and not accept_changes:
            told = "; ".join(
                f"{name} was {saved.options[name]:.200} and is {self.options[name]:.200}" for name in changed
            )
            raise CheckpointError(
                f"the run in {self.path} had other options: {told}. Build the strategy with those, or go on with the new "
                "ones by resume(arrays, accept_changes=True)"
            )
        self.best = saved.best
        return saved

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a round down; if that fails, the log says so, the older file stays, and the run goes on."""
        try:
            value = self._value(checkpoint)
            if value is not None and (self.best is None or value > self._signed(self.best[1])):
                self.best = checkpoint.round, self._signed(value)
                write_whole(self.best_path, checkpoint.arrays, {"round": str(checkpoint.round)})
            replace(checkpoint, options=self.options, best=self.best).write(self.path)
        except OSError as error:
            log(
                ERROR,
                "Round %d is not written to %s (%s); an older checkpoint stays",
                checkpoint.round,
                self.path,
                error,
            )

    def _signed(self, value: float) -> float:
        return -value if self._keep_best and self._keep_best.startswith("-") else value

    def _value(self, checkpoint: Checkpoint) -> float | None:
        """The metric that tells the best round, the larger the better; None if the round does not have it."""
        if self._keep_best is None:
            return None
        name = self._keep_best.removeprefix("-")
        for by_round in (checkpoint.evaluate_metrics, checkpoint.train_metrics):
            value = by_round.get(checkpoint.round, {}).get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                return self._signed(float(value))
        return None


def described(options: MergeOptions, module: nn.Module, **more: object) -> dict[str, str]:
    """How a run merges, in words that are the same in the next process: all but the device."""
    found = {field.name: getattr(options, field.name) for field in fields(options) if field.name != "device"}
    return {name: _words(value) for name, value in {**found, **more, "module": module}.items()}


def _words(value: object) -> str:
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return " ".join(_ADDRESS.sub("0x", repr(value)).split())
