"""Reading the calibration set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from c2m3_fl.activations.errors import RepairError

Calibration = Tensor | Iterable[object]
"""Inputs as one tensor, or an iterable of batches: tensors of inputs, or tuples or lists that begin with one."""


def read_batches(calibration: Calibration) -> list[Tensor]:
    """Read the calibration set once and keep its inputs.

    Every network must see the same inputs, several times over, so a generator or a loader that shuffles or augments is
    read a single time.

    Parameters
    ----------
    calibration
        A tensor is one batch. An iterable is read batch by batch.

    Returns
    -------
    list of Tensor
        The inputs, batch by batch, where they were; never empty.

    Raises
    ------
    RepairError
        If there is no input, a batch is no tensor, has no example, or holds a value that is not finite.
    """
    if isinstance(calibration, Dataset):
        raise RepairError("the calibration set is a Dataset of single examples; wrap it in a DataLoader")
    if not isinstance(calibration, Tensor | Iterable) or isinstance(calibration, str | bytes):
        raise RepairError(
            f"the calibration set is {type(calibration).__name__}, not a tensor or an iterable of batches"
        )
    source = [calibration] if isinstance(calibration, Tensor) else calibration
    batches = [_inputs(index, batch) for index, batch in enumerate(source)]
    if not batches:
        raise RepairError("the calibration set is empty")
    return batches


def _inputs(index: int, batch: object) -> Tensor:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor):
        raise RepairError(
            f"calibration batch {index} is {type(batch).__name__}; it must be a tensor of inputs or a "
            "tuple that begins with one"
        )
    if inputs.dim() == 0 or inputs.shape[0] == 0:
        raise RepairError(f"calibration batch {index} of shape {tuple(inputs.shape)} holds no example")
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise RepairError(f"calibration batch {index} holds NaN or infinite values")
    return inputs.detach()
