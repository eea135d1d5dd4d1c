"""Honest clients that differ as much as clients do: how large their updates and their networks are, tensor by tensor.

Each client draws its number of examples (10 to 10,000) and of epochs (1 to 50) log-uniformly, its classes from
Dirichlet(0.1), and trains by SGD in batches of 32 on scikit-learn's digits. All clients of a family train at once, as
batched matrix products, so ten thousand of them take minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from c2m3_fl.plausibility import Sizes, judge, sizes

FAMILIES = ("default start", "biases of zero", "start of zeros", "trained start", "own starts")
BATCH = 32
HIDDEN = 32
CLASSES = 10

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """Clients that share a start, unless each has its own.

    Attributes
    ----------
    broadcast
        What they set out from.
    clients
        Their tensors, stacked along the first axis.
    """

    broadcast: Tensors
    clients: Tensors


def simulate(name: str, count: int, seed: int = 0) -> Family:
    """Train the clients of a family."""
    generator = torch.Generator().manual_seed(seed)
    draws = np.random.default_rng(seed)
    digits = load_digits()
    pixels = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target).long()
    examples = np.exp(draws.uniform(np.log(10), np.log(10_000), count)).astype(int)
    epochs = np.exp(draws.uniform(0, np.log(50), count)).round().astype(int)
    steps = np.maximum(1, epochs * examples // BATCH)
    held = torch.from_numpy(np.stack([_drawn(digits.target, int(n), draws) for n in examples]))
    start = {key: tensor.clone() for key, tensor in _start(name, count, generator).items()}
    broadcast = {key: tensor[0].clone() for key, tensor in start.items()}
    if name == "trained start":
        everything = torch.from_numpy(draws.integers(0, len(labels), (1, 10_000)))
        first = {key: tensor[:1].clone() for key, tensor in start.items()}
        trained = _train(first, pixels, labels, everything, np.array([10_000]), np.array([1000]), 0.05, generator)
        broadcast = {key: tensor[0].clone() for key, tensor in trained.items()}
        start = {key: tensor.expand(count, *tensor.shape[1:]).clone() for key, tensor in trained.items()}
    rate = 0.1 if name != "default start" else 0.3
    return Family(broadcast, _train(start, pixels, labels, held, examples, steps, rate, generator))


def _drawn(target: npt.NDArray[np.int64], number: int, draws: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of a client's examples, the first `number` of 10,000 that count."""
    shares = draws.dirichlet(np.full(CLASSES, 0.1))
    chances = shares[target] / np.bincount(target)[target]
    return draws.choice(len(target), 10_000, p=chances / chances.sum())


def _start(name: str, count: int, generator: torch.Generator) -> Tensors:
    if name == "start of zeros":
        return {"weight": torch.zeros(count, CLASSES, 64), "bias": torch.zeros(count, CLASSES)}
    own = count if name == "own starts" else 1
    found: Tensors = {}
    for layer, (outputs, inputs) in {"first": (HIDDEN, 64), "last": (CLASSES, HIDDEN)}.items():
        bound = inputs**-0.5
        found[f"{layer}.weight"] = bound * (2 * torch.rand(own, outputs, inputs, generator=generator) - 1)
        bias = bound * (2 * torch.rand(own, outputs, generator=generator) - 1)
        found[f"{layer}.bias"] = torch.zeros_like(bias) if name == "biases of zero" else bias
    return {key: tensor.expand(count, *tensor.shape[1:]) for key, tensor in found.items()}


def _train(  # noqa: PLR0917
    start: Tensors,
    pixels: Tensor,
    labels: Tensor,
    held: Tensor,
    examples: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    rate: float,
    generator: torch.Generator,
) -> Tensors:
    """SGD of all clients at once; those that have done their steps drop out."""
    order = np.argsort(-steps)  # the busiest first, so that those at work are a prefix
    tensors = {key: tensor[torch.from_numpy(order)].clone() for key, tensor in start.items()}
    held, sizes_ = held[torch.from_numpy(order)], torch.from_numpy(examples[order])
    left = steps[order]
    for step in range(int(left[0])):
        active = int((left > step).sum())
        places = (torch.rand(active, BATCH, generator=generator) * sizes_[:active, None]).long()
        chosen = held[:active].gather(1, places)
        working = {key: tensor[:active] for key, tensor in tensors.items()}
        for key, gradient in _gradients(working, pixels[chosen], labels[chosen]).items():
            working[key].sub_(gradient, alpha=rate)
    back = torch.from_numpy(np.argsort(order))
    return {key: tensor[back] for key, tensor in tensors.items()}


def _gradients(tensors: Tensors, inputs: Tensor, labels: Tensor) -> Tensors:
    """Gradients of the cross-entropy, of every client's network on its own batch."""
    wanted = torch.nn.functional.one_hot(labels, CLASSES).float()
    if "weight" in tensors:
        scores = inputs @ tensors["weight"].mT + tensors["bias"][:, None]
        error = (scores.softmax(-1) - wanted) / BATCH
        return {"weight": error.mT @ inputs, "bias": error.sum(1)}
    before = inputs @ tensors["first.weight"].mT + tensors["first.bias"][:, None]
    hidden = before.relu()
    scores = hidden @ tensors["last.weight"].mT + tensors["last.bias"][:, None]
    error = (scores.softmax(-1) - wanted) / BATCH
    back = (error @ tensors["last.weight"]) * (before > 0)
    return {
        "last.weight": error.mT @ hidden,
        "last.bias": error.sum(1),
        "first.weight": back.mT @ inputs,
        "first.bias": back.sum(1),
    }


ROUNDS = (3, 4, 5, 10, 30)
"""Numbers of clients in a round."""


def refusals(family: Family, seed: int = 0) -> dict[int, list[str]]:
    """By the number of clients in a round, why clients of the family are refused; each is judged once for each number."""
    names = list(family.broadcast)
    shapes = {name: tuple(tensor.shape) for name, tensor in family.broadcast.items()}
    count = len(family.clients[names[0]])
    own = [sizes({name: family.clients[name][i] for name in names}, family.broadcast, names) for i in range(count)]
    draws = np.random.default_rng(seed)
    return {
        number: _refused(own, sizes(family.broadcast), shapes, draws.permutation(count), number) for number in ROUNDS
    }


def _refused(
    own: list[Sizes], start: Sizes, shapes: Mapping[str, tuple[int, ...]], order: npt.NDArray[np.int64], number: int
) -> list[str]:
    rounds = (order[first : first + number] for first in range(0, len(order), number))
    return [reason for each in rounds for reason in judge([own[i] for i in each], start, shapes) if reason]


def _lines(clients: int, seed: int) -> Iterator[str]:
    yield (
        "| Family | Clients | Largest update, times the usual | Refused in rounds of "
        + ", ".join(map(str, ROUNDS))
        + " |"
    )
    yield "|---|---|---|---|"
    for name in FAMILIES:
        family = simulate(name, clients, seed)
        ratios = []
        for key, tensor in family.clients.items():
            updates = (tensor - family.broadcast[key]).flatten(1).norm(dim=1)
            ratios.append(float(updates.max() / updates.median()))
        refused = refusals(family, seed)
        yield f"| {name} | {clients} | {max(ratios):.0f} | {', '.join(str(len(refused[each])) for each in ROUNDS)} |"


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.federation.unequal", description=__doc__)
    parser.add_argument("--clients", type=int, default=2000, help="of each family (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for line in _lines(options.clients, options.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
