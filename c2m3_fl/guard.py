"""Candidates for the merged network, scored: the plain and the aligned average, each with and without repair.

The score is a loss on the calibration set, compared with its targets or, where there are none, with what the clients'
ensemble predicts: the classes or labels that are likeliest in the weighted mean of their probabilities, or the weighted
mean of their outputs by squared error, which is right for quantities and for tasks that nothing tells (see
`c2m3_fl.predictions`).

Why the ensemble's classes and not its probabilities: under label skew the mean of confident, contradicting clients is
flat, and the Kullback-Leibler divergence to it prefers a network that knows nothing (`docs/federated.md` has figures).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from c2m3_fl.activations.calibration import Batch
from c2m3_fl.activations.network import Network
from c2m3_fl.activations.recording import Reader
from c2m3_fl.errors import ClientError
from c2m3_fl.layout import StateDict
from c2m3_fl.predictions import Task, fitted

Candidate = Literal["average", "average-repaired", "aligned", "aligned-repaired"]
CANDIDATES: tuple[Candidate, ...] = get_args(Candidate)
"""Every candidate, in the order of its numeric code, the safest first: federated averaging. Ties go to the earlier one."""


@dataclass(frozen=True)
class Target:
    """What candidates are compared with.

    Attributes
    ----------
    task
        How.
    wanted
        Per batch classes, labels or numbers, in the shape in which predictions are compared with them.
    probabilities
        Whether the networks put out probabilities.
    doubt
        Share of the wanted answers that are expected to be wrong: one less the ensemble's mean probability of what it
        predicts; 0 for targets that came with the inputs, and for numbers.
    """

    task: Task
    wanted: Sequence[Tensor]
    probabilities: bool
    doubt: float = 0.0


def target(
    task: Task, predictions: Sequence[Sequence[Tensor]], weights: Sequence[float], targets: Sequence[Tensor] | None
) -> Target:
    """What a merged network should predict on the calibration set.

    Parameters
    ----------
    task
        What the network does.
    predictions
        Per client and batch the client's predictions; finite.
    weights
        One non-negative weight per client, not all zero.
    targets
        Per batch the targets, if they are known.

    Raises
    ------
    RepairError
        If the targets do not fit the predictions.
    ClientError
        If clients' predictions differ in shape.
    """
    _check_shapes(predictions)
    probabilities = task.are_probabilities([each for own in predictions for each in own])
    if targets is not None:
        device = predictions[0][0].device
        wanted = [fitted(task, each.to(device), own) for each, own in zip(targets, predictions[0], strict=True)]
        if task.kind == "numbers" or any(bool((each >= 0).any()) for each in wanted):
            return Target(task, wanted, probabilities)
    total = math.fsum(weights)
    means: list[Tensor] = []
    for own, weight in zip(predictions, weights, strict=True):
        if weight > 0:
            shares = [task.opinion(each, probabilities) * (weight / total) for each in own]
            means = [a + b for a, b in zip(means, shares, strict=True)] if means else shares
    examples = sum(len(mean) for mean in means)
    confidence = sum(task.confidence(mean) * len(mean) for mean in means) / examples
    return Target(task, [task.answer(mean) for mean in means], probabilities, 1.0 - confidence)


def _check_shapes(predictions: Sequence[Sequence[Tensor]]) -> None:
    shapes = [[tuple(each.shape) for each in own] for own in predictions]
    for own in shapes:
        if own != shapes[0]:
            raise ClientError(
                f"clients' predictions differ in shape ({own[0]}, {shapes[0][0]}) and cannot be compared: give a function "
                "of the output as predictions=..., or switch the guard off by guard=False"
            )


def votes(predictions: Sequence[Sequence[Tensor]]) -> Tensor:
    """The class that each client scores highest for each example.

    Returns
    -------
    Tensor
        LongTensor of shape ``(clients, examples)``; of no examples, where outputs are no scores of classes or were not
        read.
    """
    if not all(own and all(each.dim() == 2 and each.shape[1] > 1 for each in own) for own in predictions):
        return torch.zeros((len(predictions), 0), dtype=torch.long)
    return torch.stack([torch.cat([each.argmax(1) for each in own]) for own in predictions]).cpu()


@dataclass(frozen=True)
class Score:
    """How well a candidate does on the calibration set; the smaller, the better.

    Attributes
    ----------
    loss
        Mean over the examples; infinite for outputs that are.
    errors
        Number of examples with another answer than wanted, by shares where an example has several; 0 for numbers.
    """

    loss: float
    errors: float

    def beats(self, other: Score, doubt: float = 0.0) -> bool:
        """Whether the loss is smaller, and no more examples are wrong.

        If a share `doubt` of the errors may be the target's own, their number must be smaller by its standard deviation.
        """
        return self.loss < other.loss and self.errors + math.sqrt(other.errors * doubt) <= other.errors


def score(
    network: Network, candidate: StateDict, batches: Sequence[Batch], wanted: Target, *, read: Reader, what: str
) -> Score:
    """The score of a candidate on the calibration set, by one forward pass.

    Raises
    ------
    RepairError
        If a forward pass fails.
    """
    network.load(candidate, what)
    losses, errors, number = [], 0.0, 0.0
    for index, (batch, goal) in enumerate(zip(batches, wanted.wanted, strict=True)):
        prediction = read(network.forward(index, batch, what))
        loss, counted = wanted.task.loss(prediction, goal, wanted.probabilities)
        losses.append(loss)
        number += counted
        errors += wanted.task.errors(prediction, goal, wanted.probabilities)
    mean = float(torch.stack(losses).sum()) / max(number, 1.0)
    return Score(mean if math.isfinite(mean) else math.inf, errors)


def precedence(*, gained: bool) -> tuple[Candidate, ...]:
    """The order in which candidates are compared: of two that the examples cannot tell apart, the earlier one stays.

    Parameters
    ----------
    gained
        Whether the alignment has a larger objective than the clients as they came. Then its repaired average comes before
        the plain one's: a repair makes either fit the calibration inputs, and only one of them averages like neurons.
    """
    return ("average", "aligned", "aligned-repaired", "average-repaired") if gained else CANDIDATES


def best(scores: Mapping[Candidate, Score], doubt: float = 0.0) -> Candidate:
    """The candidate that beats the best one before it, in turn; the first if none does.

    Parameters
    ----------
    scores
        Of the candidates, the safest first.
    doubt
        Share of the wanted answers that are expected to be wrong. It matters where the first candidate is a good one: the
        average of clients whose identity is optimal. An average of clients in different permutations deserves no such
        protection (`docs/federated.md` has figures for both).

    Notes
    -----
    A repaired network is more confident than an average, which alone can make its loss the smaller one where the wanted
    classes are the ensemble's, so the loss must not decide against the predictions.
    """
    chosen, *others = scores
    for name in others:
        if scores[name].beats(scores[chosen], doubt):
            chosen = name
    return chosen
