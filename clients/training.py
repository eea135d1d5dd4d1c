"""Local training and evaluation, repeatable from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes
    ----------
    epochs
        Passes over the data.
    batch_size
        Examples in a step.
    optimizer
        ``"sgd"`` (with `momentum`) or ``"adam"``.
    learning_rate, momentum, weight_decay
        Of the optimizer.
    proximal_mu
        Factor of FedProx's proximal term, half the squared distance from the weights that training starts from
        (Li et al. 2020, Eq. 2).
    """

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    proximal_mu: float = 0.0


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats and fraction of right answers, over `num_examples` examples."""

    loss: float
    accuracy: float
    num_examples: int


def derive_seed(*parts: int) -> int:
    """A seed that depends on every one of some non-negative integers, with no relation between neighbours."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@contextmanager
def deterministic(seed: int, threads: int | None = None) -> Iterator[None]:
    """Run a block from a seed, and leave torch's generator and number of threads as they were.

    Parameters
    ----------
    seed
        For torch's global generator, which initialises networks and draws dropout's masks.
    threads
        Threads of one torch operation on the CPU; sums depend on it in their last bits. None leaves it.
    """
    before = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)


def choose_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    if options.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    return torch.optim.SGD(
        model.parameters(), lr=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay
    )


def _batches(count: int, batch_size: int) -> tuple[Tensor, ...]:
    """Indices in random order, cut into batches."""
    batches = list(torch.split(torch.randperm(count), batch_size))
    # BatchNorm cannot train on a single example, so a single one that is left over joins its neighbours.
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return tuple(batches)


def _distance(model: nn.Module, start: list[Tensor]) -> Tensor:
    terms = [(p - q).square().sum() for p, q in zip(model.parameters(), start, strict=True)]
    return torch.stack(terms).sum()


def train(model: nn.Module, inputs: Tensor, labels: Tensor, options: TrainOptions, device: torch.device) -> float:
    """Train a network in place.

    Randomness comes from torch's global generator: see `deterministic`.

    Parameters
    ----------
    model
        Gives logits or log-probabilities (N, classes), for which the cross-entropy is the same.
    inputs
        (N, C, H, W).
    labels
        (N,), int64.
    options
        How to train.
    device
        Where; the network stays there.

    Returns
    -------
    float
        Mean loss over the last epoch, NaN if there was none.
    """
    model.to(device).train()
    inputs, labels = inputs.to(device), labels.to(device)
    start = [p.detach().clone() for p in model.parameters()] if options.proximal_mu else []
    optimizer = _optimizer(model, options)
    mean_loss = torch.tensor(torch.nan)
    for _ in range(options.epochs):
        total = torch.zeros((), device=device)
        for batch in _batches(len(labels), options.batch_size):
            loss = functional.cross_entropy(model(inputs[batch]), labels[batch])
            total += loss.detach() * len(batch)
            if start:
                loss = loss + options.proximal_mu / 2 * _distance(model, start)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        mean_loss = total / len(labels)
    return float(mean_loss)


@torch.inference_mode()
def predict(model: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """Log-probabilities (N, classes) of inputs (N, C, H, W), in evaluation mode, on the CPU."""
    model.to(device).eval()
    outputs = [model(batch.to(device)) for batch in torch.split(inputs, _EVALUATION_BATCH)]
    return functional.log_softmax(torch.cat(outputs), dim=1).cpu()


def score(log_probabilities: Tensor, labels: Tensor) -> Score:
    """Compare predictions (N, classes) with labels (N,)."""
    return Score(
        loss=float(functional.nll_loss(log_probabilities, labels)),
        accuracy=float((log_probabilities.argmax(dim=1) == labels).double().mean()),
        num_examples=len(labels),
    )


def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor, device: torch.device) -> Score:
    """Loss and accuracy of a network on inputs (N, C, H, W) and labels (N,)."""
    return score(predict(model, inputs, device), labels)
