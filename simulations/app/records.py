"""What a run leaves behind: typed records, written as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("c2m3-fl", "flwr", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Environment:
    """Where a run was made."""

    python: str = field(default_factory=platform.python_version)
    packages: Mapping[str, str] = field(default_factory=lambda: {name: version(name) for name in _PACKAGES})
    machine: str = field(default_factory=lambda: f"{platform.system()} {platform.machine()}")
    cpus: int = field(default_factory=lambda: os.cpu_count() or 1)
    gpu: str | None = field(
        default_factory=lambda: torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    )


@dataclass(frozen=True)
class RoundRecord:
    """One round of a run; round 0 is the network before training.

    Attributes
    ----------
    round
        Its number.
    server
        ``accuracy`` and ``loss`` of the global network on the test set.
    train, evaluate
        What the strategy made of the clients' metrics.
    comparison
        Where strategies were compared: ``clients``, ``clients_mean``, ``ensemble``, and ``merged`` by strategy.
    """

    round: int
    server: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    comparison: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """A run: its run config, its rounds, where it was made and how long it took."""

    settings: Mapping[str, Any]
    num_clients: int
    rounds: tuple[RoundRecord, ...]
    seconds: float
    environment: Environment = field(default_factory=Environment)

    @property
    def accuracy(self) -> float:
        """Test accuracy of the global network after the last round."""
        return float(self.rounds[-1].server["accuracy"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _plain(value: Any) -> Any:
    """`value` with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file of JSON, whole or not at all; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
