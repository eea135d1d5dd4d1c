"""What a server needs to go on after a crash, in one file that is replaced as a whole.

The file is a NumPy archive without pickled objects: arrays under numbers, and one JSON document that names them and holds
the rest. It is written beside the old one, flushed to the disk and moved over it, so at any moment there is one whole
checkpoint, the old or the new.
"""

from __future__ import annotations

import json
import os
import random
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_FORMAT, _VERSION = "c2m3-checkpoint", 2

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
    """

    round: int
    arrays: Mapping[str, npt.NDArray[Any]]
    train_metrics: Mapping[int, Metrics] = field(default_factory=dict)
    evaluate_metrics: Mapping[int, Metrics] = field(default_factory=dict)
    velocity: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    random_state: RandomState = field(default_factory=RandomState.capture)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        state = self.random_state
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "round": self.round,
            "names": list(self.arrays),
            "velocity": list(self.velocity),
            "train_metrics": {str(key): dict(value) for key, value in self.train_metrics.items()},
            "evaluate_metrics": {str(key): dict(value) for key, value in self.evaluate_metrics.items()},
            "python": state.python,
            "numpy": [state.numpy[0], *state.numpy[2:]],
            "cuda": len(state.cuda),
        }
        contents = {f"array-{index}": array for index, array in enumerate(self.arrays.values())}
        contents |= {f"velocity-{index}": array for index, array in enumerate(self.velocity.values())}
        contents |= {f"cuda-{index}": array for index, array in enumerate(state.cuda)}
        contents |= {"torch": state.torch, "numpy": state.numpy[1]}
        contents["document"] = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_directory(path.parent)

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
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                document = json.loads(bytes(archive["document"]).decode())
                if (document["format"], document["version"]) != (_FORMAT, _VERSION):
                    raise CheckpointError(f"{path} has version {document['version']}; this release reads {_VERSION}")
                version, internal, gauss = document["python"]
                kind, *rest = document["numpy"]
                state = RandomState(
                    python=(version, tuple(internal), gauss),
                    numpy=(kind, archive["numpy"], *rest),
                    torch=archive["torch"],
                    cuda=tuple(archive[f"cuda-{index}"] for index in range(document["cuda"])),
                )
                arrays = {name: archive[f"array-{index}"] for index, name in enumerate(document["names"])}
                velocity = {name: archive[f"velocity-{index}"] for index, name in enumerate(document["velocity"])}
        except (KeyError, TypeError, EOFError, zipfile.BadZipFile, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} is damaged or no checkpoint ({error}); move it away to start from the first round"
            ) from error
        return cls(
            round=document["round"],
            arrays=arrays,
            train_metrics={int(key): value for key, value in document["train_metrics"].items()},
            evaluate_metrics={int(key): value for key, value in document["evaluate_metrics"].items()},
            velocity=velocity,
            random_state=state,
        )


def _flush_directory(directory: Path) -> None:
    """Let the move survive a power failure too, where the system can open directories."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
