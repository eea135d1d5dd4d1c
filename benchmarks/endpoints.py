"""Trained networks to match, by a fixed recipe, cached on disk.

MNIST: the perceptron 784-W-W-W-10 on all training images; Adam, one-cycle learning rate up to 1e-3, 3 epochs.
CIFAR-10: ResNet20 (LayerNorm) at a width on the first 20,000 training images; SGD with momentum 0.9 and weight decay 1e-4,
one-cycle learning rate up to 0.1, 4 epochs at width 1 and 3 at others; half of the batches are mirrored. Batches of 128,
gradients clipped to norm 1. Endpoint i starts from seed 1000 + i.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl.symmetry import PermutationSpec
from clients.data import ImageData, Split, load_data
from clients.models import MLP, ResNet20

_BATCH = 128
_IMAGES = 20_000


@dataclass(frozen=True)
class Family:
    """Networks of one architecture, trained alike from different seeds.

    Attributes
    ----------
    name
        ``mlpW`` for the perceptron with hidden layers of W, ``resnetW`` for ResNet20 at width W.
    data_root
        Folder of the data set.
    cache
        Folder of the trained networks.
    """

    name: str
    data_root: Path
    cache: Path

    @property
    def image(self) -> bool:
        """Whether the networks take CIFAR-10's images, not MNIST's."""
        return self.name.startswith("resnet")

    def network(self) -> nn.Module:
        """An untrained network."""
        if self.image:
            return ResNet20(3, 10, float(self.name.removeprefix("resnet")))
        if self.name.startswith("mlp"):
            return MLP(784, (int(self.name.removeprefix("mlp")),) * 3, 10)
        raise ValueError(f"there is no family {self.name!r}; use mlpW or resnetW with a width W")

    @functools.cache  # noqa: B019 - families are few and live as long as the process
    def spec(self) -> PermutationSpec:
        """The permutation groups, traced."""
        shape = (2, 3, 32, 32) if self.image else (2, 1, 28, 28)
        return PermutationSpec.from_module(self.network(), torch.zeros(shape))

    def inputs(self, split: Split) -> Tensor:
        """A split's images as the networks were trained on them."""
        mean, std = (0.47, 0.25) if self.image else (0.1307, 0.3081)
        return (split.images.float() / 255 - mean) / std

    def endpoints(self, count: int) -> list[dict[str, Tensor]]:
        """State dicts of the first `count` endpoints; those that the cache lacks are trained."""
        self.cache.mkdir(parents=True, exist_ok=True)
        return [self._endpoint(number) for number in range(count)]

    def accuracy(self, state_dict: dict[str, Tensor], examples: int = 2_000) -> float:
        """Share of the first test images that a network classifies correctly."""
        network, test = self.network().eval(), self._load().test
        network.load_state_dict(state_dict)
        with torch.no_grad():
            batches = torch.split(self.inputs(test.select(torch.arange(examples))), 1000)
            predicted = torch.cat([network(batch).argmax(1) for batch in batches])
        return float((predicted == test.labels[:examples]).float().mean())

    @functools.cache  # noqa: B019
    def _load(self) -> ImageData:
        return load_data(self._data(), self.data_root)

    def _data(self) -> str:
        """The data set's name: torchvision's, or a file ``cifar10.npz`` where there is one."""
        if not self.image:
            return "mnist"
        return "cifar10.npz" if (self.data_root / "cifar10.npz").exists() else "cifar10"

    def _endpoint(self, number: int) -> dict[str, Tensor]:
        path = self.cache / f"{self.name}_{number}.pt"
        if not path.exists():
            torch.save(self._train(number), path)
        state_dict: dict[str, Tensor] = torch.load(path)
        return state_dict

    def _train(self, number: int) -> dict[str, Tensor]:
        train = self._load().train
        images, labels = self.inputs(train), train.labels
        if self.image:
            images, labels = images[:_IMAGES], labels[:_IMAGES]
        torch.manual_seed(1000 + number)
        network = self.network()
        rate = 0.1 if self.image else 1e-3
        epochs = 4 if self.name == "resnet1" else 3
        optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), rate)
        if self.image:
            optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=1e-4)
        steps = len(images) // _BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(images))[: steps * _BATCH], _BATCH):
                inputs = images[batch]
                if self.image and torch.rand(()) < 0.5:
                    inputs = inputs.flip(3)
                loss = functional.cross_entropy(network(inputs), labels[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        return network.state_dict()
