"""Loss and accuracy of a network on labelled data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl.cli.data import Data
from c2m3_fl.cli.errors import InputError

_KEYS = ("logits", "out")


@dataclass(frozen=True)
class Evaluation:
    """How good a network is.

    Attributes
    ----------
    loss
        Mean cross-entropy in nats where targets are classes, else mean squared error.
    accuracy
        Share of examples whose class is right; None where targets are quantities.
    """

    loss: float
    accuracy: float | None


class Evaluator:
    """Measures state dicts of one module on the same data.

    Parameters
    ----------
    module
        The network; its weights are replaced.
    data
        With targets: classes, or quantities.
    batch_size
        Examples in a forward pass.
    device
        Where.

    Raises
    ------
    InputError
        If there are no targets; when measuring, if the outputs do not fit them.
    """

    def __init__(self, module: nn.Module, data: Data | None, batch_size: int, device: torch.device) -> None:
        if data is None or data.targets is None:
            raise InputError("the loss needs targets: an array y in the .npz file, or images in one subfolder a class")
        self._module, self._data, self._batch_size, self._device = module.to(device).eval(), data, batch_size, device

    def __call__(self, state_dict: Mapping[str, Tensor]) -> Evaluation:
        """Measure a network."""
        self._module.load_state_dict(dict(state_dict))
        loss, right, count = 0.0, 0, 0
        with torch.inference_mode():
            for inputs, targets in self._batches():
                outputs = self._outputs(inputs)
                part, hits = _scored(outputs, targets)
                loss, right, count = loss + part, right + hits, count + len(targets)
        assert self._data.targets is not None
        classes = not self._data.targets.is_floating_point()
        return Evaluation(loss / count, right / count if classes else None)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in self._data.batches(self._batch_size):
            yield inputs.to(self._device), targets.to(self._device)

    def _outputs(self, inputs: Tensor) -> Tensor:
        outputs: Any = self._module(inputs)
        if isinstance(outputs, Mapping):
            outputs = next((outputs[key] for key in _KEYS if key in outputs), outputs)
        if not isinstance(outputs, Tensor):
            raise InputError(f"the network returns {type(outputs).__name__}, not class scores or quantities")
        return outputs.double()


def _scored(outputs: Tensor, targets: Tensor) -> tuple[float, int]:
    """Sum of losses over a batch, and how many classes are right."""
    if targets.is_floating_point():
        if outputs.numel() != targets.numel():
            raise InputError(f"outputs of shape {tuple(outputs.shape)} do not fit targets of {tuple(targets.shape)}")
        errors = (outputs.reshape(targets.shape) - targets).square()
        return float(errors.reshape(len(targets), -1).mean(1).sum()), 0
    least, most = int(targets.min()), int(targets.max())
    if outputs.dim() != 2 or targets.dim() != 1 or least < 0 or most >= outputs.shape[1]:
        raise InputError(f"outputs of shape {tuple(outputs.shape)} are no class scores for classes {least} to {most}")
    return float(functional.cross_entropy(outputs, targets, reduction="sum")), int((outputs.argmax(1) == targets).sum())
