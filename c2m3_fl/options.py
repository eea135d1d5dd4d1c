"""The options of a merge: one record, in which each default exists once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from c2m3_fl.device import resolve_device
from c2m3_fl.errors import OptionError
from c2m3_fl.matching import Matcher, resolve_matcher
from c2m3_fl.predictions import Predictions, TaskName
from c2m3_fl.repair.methods import Method
from c2m3_fl.robust import Robust

Repair = Method | Literal["auto"]
"""A method of repair, or ``"auto"``: the one that measured best for the network and its use."""


Classifier = Literal["keep", "refit"]
"""What becomes of the last linear layer."""


@dataclass(frozen=True)
class MergeOptions:
    """How clients are merged.

    Attributes
    ----------
    matcher
        See `c2m3_fl.align`.
    repair
        See `c2m3_fl.repair.repair`; ``"auto"`` to have it chosen; None for none. Needs a calibration set.
    activations
        Squared norm of the clients' activations on the calibration set, relative to that of the weights, in what the default
        matcher aligns them by (see `c2m3_fl.matching.ActivationMatcher`); 0 for weights alone. Other matchers take
        weights alone.
    classifier
        ``"refit"`` to fit the last linear layer of the merged network to the targets, or to the classes that the clients'
        ensemble predicts (see `c2m3_fl.repair.classifier`); for a merge that nobody trains on from.
    guard
        Whether to score the plain and the aligned average, each with and without repair, on the calibration set, and to
        keep the best (see `c2m3_fl.guard`).
    robust
        Protection against malicious clients (see `c2m3_fl.robust`); None trusts every client.
    group_size
        Most clients to align at once, which bounds memory (see `c2m3_fl.hierarchy`); None for no bound.
    predictions
        Where in the network's output the guard finds predictions (see `c2m3_fl.predictions.PredictionReader`).
    task
        What the network does, if neither targets in the calibration set nor its output tell (see
        `c2m3_fl.predictions.find_task`).
    device
        ``"auto"`` (CUDA where present) or a torch device.

    Raises
    ------
    OptionError
        If there is no such matcher, repair, robust mode, task or device, or the group size is below 2.
    """

    matcher: str | Matcher = "default"
    repair: Repair | None = "auto"
    activations: float = 0.1
    classifier: Classifier = "keep"
    guard: bool = True
    robust: Robust | None = None
    group_size: int | None = None
    predictions: Predictions | None = None
    task: TaskName | None = None
    device: str | torch.device = "auto"

    def __post_init__(self) -> None:
        resolve_matcher(self.matcher)
        resolve_device(self.device)
        _check("repair", self.repair, ("auto", *get_args(Method)))
        _check("classifier", self.classifier, get_args(Classifier))
        if not 0 <= self.activations < math.inf:
            raise OptionError(f"activations is {self.activations}; it is a share, at least 0")
        _check("robust mode", self.robust, get_args(Robust))
        _check("task", self.task, get_args(TaskName))
        if self.group_size is not None and self.group_size < 2:
            raise OptionError(f"group_size is {self.group_size}; a group has at least 2 clients")


def _check(what: str, value: Any, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise OptionError(f"there is no {what} {value!r}; choose one of {', '.join(choices)} or None")


DEFAULTS = MergeOptions()
"""The defaults, for signatures."""
