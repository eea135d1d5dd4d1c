"""What of a network's output are its predictions, and what task they solve: by these candidates are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from c2m3_fl.activations.errors import RepairError
from c2m3_fl.errors import OptionError

Predictions = str | int | Callable[[Any], Tensor]
"""A key or position in the network's output, or a function of the output."""

TaskName = Literal["classification", "segmentation", "sequence", "binary", "multilabel", "regression"]

KNOWN_KEYS = ("logits", "out", "predictions", "prediction", "pred", "output")
"""By what names outputs with parts hold their predictions; the first that is there counts."""

_UNIT = 1e-3  # how far sums of probabilities may be from one, in half precision too


@dataclass(frozen=True)
class PredictionReader:
    """Finds the predictions in a network's output.

    Attributes
    ----------
    wanted
        Where they are; None for the output itself if it is a tensor, else what is under one of `KNOWN_KEYS`, else the
        first tensor of floating point.
    """

    wanted: Predictions | None = None

    def __call__(self, output: Any) -> Tensor:
        """The predictions, in single precision or more.

        Raises
        ------
        RepairError
            If there are none.
        """
        found = self.locate(output)[1]
        return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found

    def locate(self, output: Any) -> tuple[str, Tensor]:
        """Where the predictions are, for people, and the predictions."""
        if self.wanted is None:
            parts = dict(_floating(output))
            keys = [key for key in KNOWN_KEYS if key in parts] or list(parts)
            if keys:
                return keys[0], parts[keys[0]]
            found: Any = None
        else:
            found = self._wanted(output)
        if isinstance(found, Tensor) and found.is_floating_point():
            return str(self.wanted), found
        raise RepairError(
            f"no predictions of floating point are found in the module's output ({type(output).__name__}): say where they "
            "are by predictions=KEY or predictions=FUNCTION, or switch the guard off by guard=False"
        )

    def _wanted(self, output: Any) -> Any:
        if callable(self.wanted):
            return self.wanted(output)
        try:
            return output[self.wanted] if not isinstance(output, Tensor) else None
        except (KeyError, IndexError, TypeError):
            return getattr(output, self.wanted, None) if isinstance(self.wanted, str) else None


def _floating(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of floating point in an output of any kind, each with its path."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
        return
    parts: Sequence[tuple[Any, Any]] = ()
    if isinstance(output, Mapping):
        parts = list(output.items())
    elif isinstance(output, tuple | list):
        parts = list(enumerate(output))
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    for key, value in parts:
        yield from _floating(value, f"{path}.{key}" if path else str(key))


@dataclass(frozen=True)
class Task:
    """How predictions are put together and judged.

    Attributes
    ----------
    kind
        ``"classes"``: one of several, scored along an axis; ``"labels"``: each of several, or one, that applies or not;
        ``"numbers"``: quantities.
    axis
        Of the classes: 1, with positions behind it, or -1, with positions before it.
    known
        Whether the task was given, or told by targets or by the output; otherwise numbers are compared, which is right
        for scores of classes too.
    """

    kind: Literal["classes", "labels", "numbers"]
    axis: int = 1
    known: bool = True

    def opinion(self, prediction: Tensor, probabilities: bool) -> Tensor:
        """What clients' weighted mean is taken of: probabilities, or numbers as they are. In double precision."""
        exact = prediction.double()
        if self.kind == "numbers" or probabilities:
            return exact
        return exact.softmax(self.axis) if self.kind == "classes" else exact.sigmoid()

    def answer(self, mean: Tensor) -> Tensor:
        """What an ensemble with this mean opinion predicts."""
        if self.kind == "classes":
            return mean.argmax(self.axis)
        return (mean >= 0.5).long() if self.kind == "labels" else mean

    def confidence(self, mean: Tensor) -> float:
        """How likely the ensemble finds its own answers, on average; 1 for numbers."""
        if self.kind == "numbers":
            return 1.0
        return float((mean.amax(self.axis) if self.kind == "classes" else torch.maximum(mean, 1 - mean)).mean())

    def loss(self, prediction: Tensor, wanted: Tensor, probabilities: bool) -> tuple[Tensor, float]:
        """Sum of the examples' losses, a scalar, and the number of examples that count."""
        exact = prediction.double()
        counted = wanted >= 0 if self.kind != "numbers" else torch.ones_like(wanted, dtype=torch.bool)
        share = len(exact) / max(1, counted.numel())  # the mean over an example's positions, summed over examples
        number = float(counted.sum()) * share
        if self.kind == "numbers":
            return (exact - wanted).square().sum() * share, number
        if self.kind == "labels":
            chance = exact.clamp(_LEAST, 1 - _LEAST).logit() if probabilities else exact
            losses = functional.binary_cross_entropy_with_logits(chance, wanted.clamp_min(0).double(), reduction="none")
            return (losses * counted).sum() * share, number
        scores = exact.clamp_min(_LEAST).log() if probabilities else exact
        target = torch.where(counted, wanted, -100)
        moved = scores.movedim(self.axis, 1)
        return functional.cross_entropy(moved, target, reduction="sum", ignore_index=-100) * share, number

    def errors(self, prediction: Tensor, wanted: Tensor, probabilities: bool) -> float:
        """Number of examples that are wrong; of several answers an example gives, the share."""
        if self.kind == "numbers":
            return 0.0
        if self.kind == "classes":
            answer = prediction.argmax(self.axis)
        else:
            answer = (prediction >= (0.5 if probabilities else 0.0)).long()
        wrong = ((answer != wanted) & (wanted >= 0)).sum()
        return float(wrong) * len(prediction) / max(1, wanted.numel())

    def are_probabilities(self, predictions: Sequence[Tensor]) -> bool:
        """Whether the network puts out probabilities and not scores: all of them are between 0 and 1, and sum to 1."""
        if self.kind == "numbers" or not all(bool(((p >= 0) & (p <= 1 + _UNIT)).all()) for p in predictions):
            return False
        return self.kind == "labels" or all(bool(((p.sum(self.axis) - 1).abs() < _UNIT).all()) for p in predictions)


_LEAST = 1e-12

_NAMED: dict[str, Task] = {
    "classification": Task("classes"),
    "segmentation": Task("classes"),
    "sequence": Task("classes", -1),
    "binary": Task("labels"),
    "multilabel": Task("labels"),
    "regression": Task("numbers"),
}


def find_task(
    name: TaskName | None, predictions: Sequence[Tensor], targets: Sequence[Tensor] | None, key: str = ""
) -> Task:
    """The task that a network solves.

    Parameters
    ----------
    name
        The task, if the user says so.
    predictions
        Per batch those of some network.
    targets
        Per batch the targets of the calibration set, if they are known. Numbers of floating point say regression, but
        for zeros and ones, which are labels.
    key
        Where in the output the predictions were found: ``"logits"`` are scores of classes.

    Raises
    ------
    RepairError
        If targets do not fit the predictions.
    OptionError
        If there is no such task, or predictions do not fit it.
    """
    if name is not None and name not in get_args(TaskName):
        raise OptionError(f"there is no task {name!r}; choose one of {', '.join(get_args(TaskName))}")
    shape = tuple(predictions[0].shape)
    if name is not None:
        task = _NAMED[name]
        if task.kind == "classes" and (len(shape) < 2 or shape[task.axis] < 2):
            raise OptionError(f"outputs of shape {shape} are no scores of classes, so the task is not {name!r}")
    elif targets is not None:
        task = _told_by(targets, predictions)
    else:
        sample = torch.cat([each.flatten(1) if each.dim() > 1 else each for each in predictions])
        scores = len(shape) == 2 and shape[1] > 1
        classes = scores and (key == "logits" or _sum_to_one(sample) or _sum_to_one(sample.exp()))
        task = Task("classes") if classes else Task("numbers", known=False)
    for wanted, prediction in zip(targets or (), predictions, strict=False):
        fitted(task, wanted, prediction)
    return task


def _sum_to_one(values: Tensor) -> bool:
    return bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < _UNIT).all())


def _told_by(targets: Sequence[Tensor], predictions: Sequence[Tensor]) -> Task:
    wanted, shape = targets[0].shape, predictions[0].shape
    binary = all(bool(((each == 0) | (each == 1) | (each < 0)).all()) for each in targets)
    numbers = targets[0].is_floating_point()
    alike = wanted == shape or (wanted.numel() == shape.numel() and len(shape) <= 2)
    if alike:
        return Task("labels") if binary else Task("numbers")
    if not numbers and len(shape) >= 2 and shape[1] > 1 and wanted == (shape[0], *shape[2:]):
        return Task("classes")
    if not numbers and len(shape) >= 3 and shape[-1] > 1 and wanted == shape[:-1]:
        return Task("classes", -1)
    return Task("numbers") if numbers else Task("classes")


def fitted(task: Task, targets: Tensor, prediction: Tensor) -> Tensor:
    """Targets in the shape in which predictions are compared with them.

    Raises
    ------
    RepairError
        If they do not fit.
    """
    shape = tuple(prediction.shape)
    if task.kind == "classes":
        places = list(shape)
        classes = places.pop(task.axis) if len(shape) > 1 else 0
        fits = tuple(targets.shape) == tuple(places) and not targets.is_floating_point()
        if fits and int(targets.max()) < classes and int(targets.min()) in (-100, -1, *range(classes)):
            return targets
    elif targets.numel() == prediction.numel():
        shaped = targets.reshape(shape)
        if task.kind == "numbers":
            return shaped.double()
        if bool(((shaped == 0) | (shaped == 1) | (shaped < 0)).all()):
            return shaped.long()
    what = f"of shape {tuple(targets.shape)}"
    if not targets.is_floating_point() and targets.numel():
        what = f"labels from {int(targets.min())} to {int(targets.max())}, {what},"
    raise RepairError(
        f"the calibration set's targets ({what}) do not fit outputs of shape {shape}: give calibration inputs without "
        "labels, or say what they are by task=..."
    )
