"""What a server needs to go on after a crash, in one file that is replaced as a whole.

The file is in safetensors: the global network's tensors under their own names, for whoever wants to load them, those of the
server's momentum under `VELOCITY`, and one JSON document in its metadata with the rest. It is written beside the old one,
flushed to the disk and moved over it, so at any moment there is one whole checkpoint, the old or the new.
"""

from __future__ import annotations

import base64
import json
import os
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch

_FORMAT, _VERSION = "c2m3-checkpoint", 3

VELOCITY = "c2m3.velocity."
"""Prefix of the momentum's tensors."""

Metrics = Mapping[str, Any]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that is another model's."""


@dataclass(frozen=True)
class RandomState:
    """State of the global generators of Python, NumPy and torch (CPU and every CUDA device)."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: npt.NDArray[np.uint8]
    cuda: tuple[npt.NDArray[np.uint8], ...] = ()

    @classmethod
    def capture(cls) -> RandomState:
        """The present state."""
        # Asking for CUDA's state where nobody has used it would start CUDA.
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        return cls(
            python=random.getstate(),
            numpy=tuple(np.random.get_state(legacy=True)),
            torch=torch.get_rng_state().numpy(),
            cuda=tuple(state.numpy() for state in cuda),
        )

    def document(self) -> dict[str, Any]:
        """The state in JSON's types."""
        return {
            "python": self.python,
            "numpy": [self.numpy[0], self.numpy[1].tolist(), *self.numpy[2:]],
            "torch": base64.b64encode(self.torch.tobytes()).decode(),
            "cuda": [base64.b64encode(state.tobytes()).decode() for state in self.cuda],
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> RandomState:
        """The state that `document` tells."""
        kind, internal, *rest = document["numpy"]
        version, words, gauss = document["python"]
        return cls(
            python=(version, tuple(words), gauss),
            numpy=(kind, np.array(internal, dtype=np.uint32), *rest),
            torch=np.frombuffer(base64.b64decode(document["torch"]), dtype=np.uint8),
            cuda=tuple(np.frombuffer(base64.b64decode(state), dtype=np.uint8) for state in document["cuda"]),
        )

    def restore(self) -> None:
        """Set the generators."""
        version, internal, gauss = self.python
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state(self.numpy)
        torch.set_rng_state(torch.from_numpy(self.torch.copy()))
        if self.cuda and torch.cuda.device_count() >= len(self.cuda):
            for device, state in enumerate(self.cuda):
                torch.cuda.set_rng_state(torch.from_numpy(state.copy()), device)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a federation after a whole round.

    Attributes
    ----------
    round
        Number of rounds done.
    arrays
        The global network.
    train_metrics, evaluate_metrics
        By round, what the strategy made of the clients' metrics.
    velocity
        Of the server's momentum; empty without.
    random_state
        The generators' state after the round.
    options
        By name, how the run merges.
    best
        The best round so far and its metric, if the best is kept.
    """

    round: int
    arrays: Mapping[str, npt.NDArray[Any]]
    train_metrics: Mapping[int, Metrics] = field(default_factory=dict)
    evaluate_metrics: Mapping[int, Metrics] = field(default_factory=dict)
    velocity: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    random_state: RandomState = field(default_factory=RandomState.capture)
    options: Mapping[str, str] = field(default_factory=dict)
    best: tuple[int, float] | None = None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written; nothing is left of it then, and an older file stays.
        """
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "round": self.round,
            "train_metrics": {str(key): dict(value) for key, value in self.train_metrics.items()},
            "evaluate_metrics": {str(key): dict(value) for key, value in self.evaluate_metrics.items()},
            "random_state": self.random_state.document(),
            "options": dict(self.options),
            "best": self.best,
            "names": list(self.arrays),
        }
        tensors = dict(self.arrays) | {f"{VELOCITY}{name}": array for name, array in self.velocity.items()}
        write_whole(path, tensors, {_FORMAT: json.dumps(document)})

    @classmethod
    def read(cls, path: str | Path) -> Checkpoint:
        """Read a file that `write` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        CheckpointError
            If it is damaged, or no checkpoint of this version.
        """
        with Path(path).open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise CheckpointError(
                    f"{path} is a checkpoint of an earlier release, which this one cannot read: finish that run with the "
                    "release that began it, or move the file away to start from the first round"
                )
        try:
            with safetensors.safe_open(str(path), framework="numpy") as opened:
                document = json.loads((opened.metadata() or {})[_FORMAT])
                if document["version"] != _VERSION:
                    raise CheckpointError(f"{path} has version {document['version']}; this release reads {_VERSION}")
                arrays = {name: opened.get_tensor(name) for name in document["names"]}
                velocity = {
                    name.removeprefix(VELOCITY): opened.get_tensor(name)
                    for name in opened.keys()  # noqa: SIM118  # it is no mapping
                    if name.startswith(VELOCITY) and name not in arrays
                }
            return cls(
                round=document["round"],
                arrays=arrays,
                train_metrics={int(key): value for key, value in document["train_metrics"].items()},
                evaluate_metrics={int(key): value for key, value in document["evaluate_metrics"].items()},
                velocity=velocity,
                random_state=RandomState.of(document["random_state"]),
                options=document["options"],
                best=None if document["best"] is None else (document["best"][0], document["best"][1]),
            )
        except (KeyError, TypeError, ValueError, OSError, safetensors.SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} is damaged or no checkpoint ({error}); move it away to start from the first round"
            ) from error


def write_whole(path: Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: dict[str, str]) -> None:
    """Write a file of safetensors, whole or not at all, by way of a file of its own beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(safetensors.numpy.save(contiguous, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    _flush_directory(path.parent)


def _flush_directory(directory: Path) -> None:
    """Let the move survive a power failure too, where the system can open directories."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
