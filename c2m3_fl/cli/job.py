"""What most commands begin with: a network, files of its weights, data, and the permutation groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from c2m3_fl import PermutationSpec
from c2m3_fl.cli.checkpoints import Checkpoints
from c2m3_fl.cli.data import Data, read_data
from c2m3_fl.cli.errors import InputError
from c2m3_fl.cli.modules import check_forward, find_spec, floating_dtype, load_network
from c2m3_fl.cli.progress import Progress


@dataclass(frozen=True)
class Job:
    """The options that say what to work on; a command that lacks one has its default."""

    network: str
    files: tuple[Path, ...]
    device: torch.device
    matcher: str = "default"
    shapes: tuple[str, ...] = ()
    spec_file: Path | None = None
    key: str | None = None
    weights: tuple[float, ...] | None = None
    group_size: int | None = None
    data_path: Path | None = None
    examples: int = 0
    mean: str | None = None
    std: str | None = None
    batch_size: int = 256

    def open(self, progress: Progress) -> Opened:
        """Make the network, read the first file and the data, and find the permutation groups.

        Raises
        ------
        InputError
            Naming what cannot be used.
        """
        if len(self.files) < 2:
            raise InputError("one checkpoint was given; two or more are needed")
        if self.weights is not None and len(self.weights) != len(self.files):
            raise InputError(f"--weights has {len(self.weights)} numbers for {len(self.files)} files")
        checkpoints = Checkpoints(self.files, load_network(self.network), self.key, progress)
        data = None
        if self.data_path is not None:
            shape = self.shapes[0] if self.shapes else None
            found = read_data(self.data_path, floating_dtype(checkpoints.module), shape, self.mean, self.std)
            data = found.drawn(self.examples)
            check_forward(checkpoints.module, data.inputs[:2], self.data_path)
        with progress.stage("tracing"):
            spec = find_spec(checkpoints.module, self.spec_file, self.shapes, None if data is None else data.inputs)
        return Opened(checkpoints, data, spec)


@dataclass(frozen=True)
class Opened:
    """What a job works on; networks are read when they are asked for."""

    checkpoints: Checkpoints
    data: Data | None
    spec: PermutationSpec


def takes_job(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its options that are a `Job`'s as one, and the others as they are."""
    names = {field.name for field in fields(Job)}

    @wraps(command)
    def run(**options: Any) -> None:
        job = Job(**{name: value for name, value in options.items() if name in names})
        command(job=job, **{name: value for name, value in options.items() if name not in names})

    return run
