"""Networks that the tests' command lines name, and files of their weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from c2m3_fl.symmetry import PermutationSpec

PERCEPTRON = f"{__name__}:perceptron"
FEATURES, CLASSES = 6, 3


def perceptron(hidden: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


class Tied(nn.Module):
    """The output layer is the embedding, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.hidden(self.embed(tokens))))
        return logits


class Pair(nn.Module):
    """Class scores, and something beside them that does not depend on the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron()

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"noise": inputs[:, :CLASSES], "logits": self.layers(inputs)}


def number() -> int:
    return 3


def failing() -> nn.Module:
    raise RuntimeError("no such\nweights")


def weights(seed: int) -> dict[str, Tensor]:
    """A random perceptron's."""
    torch.manual_seed(seed)
    return perceptron().state_dict()


def shuffled(state_dict: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The same function with its neurons in another order."""
    spec = PermutationSpec.from_module(perceptron(), torch.zeros(1, FEATURES))
    return spec.apply(state_dict, spec.random(torch.Generator().manual_seed(seed)))


def planted(folder: Path, count: int = 2, suffix: str = ".safetensors") -> list[str]:
    """Files of one network in several orders; their names."""
    original = weights(0)
    paths = [folder / f"{'abcdefghij'[number]}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        save(path, original if number == 0 else shuffled(original, number))
    return [str(path) for path in paths]


def save(path: Path, state_dict: dict[str, Tensor]) -> str:
    """In the format that the suffix names; the name."""
    if path.suffix == ".safetensors":
        save_file(state_dict, path)
    else:
        torch.save(state_dict, path)
    return str(path)


def labelled(folder: Path, state_dict: dict[str, Tensor], examples: int = 64) -> str:
    """An ``.npz`` file of inputs with the classes that the network gives them; its name."""
    network = perceptron()
    network.load_state_dict(state_dict)
    inputs = torch.randn(examples, FEATURES, generator=torch.Generator().manual_seed(9))
    path = folder / "data.npz"
    np.savez(path, x=inputs.numpy(), y=network(inputs).argmax(1).numpy())
    return str(path)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.target}",)
