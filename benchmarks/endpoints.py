"""Trained networks to match: families of one architecture from different seeds, trained and kept as for the experiments.

``mlpW``: the perceptron 784-W-W-W-10 on all of MNIST, ``mlpWxD`` the same with D hidden layers; Adam, cosine learning rate
from 1e-3, 3 epochs. ``resnetW`` and ``vggW``: ResNet20 and VGG16 (LayerNorm) on CIFAR-10 by the recipe of the experiments'
CPU scale; at widths other than that scale's own, they see 20,000 images, for 2 epochs, VGG16 with Adam.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl.alignment import align
from c2m3_fl.averaging import average
from c2m3_fl.matching import Matcher
from c2m3_fl.repair import repair
from c2m3_fl.symmetry import PermutationSpec
from clients.data import ImageData
from clients.models import build_model
from simulations.laboratory.endpoints import EndpointConfig, EndpointStore, find_data
from simulations.laboratory.scales import SCALES
from simulations.laboratory.training import Recipe

_PERCEPTRON = Recipe(epochs=3, batch_size=128, optimizer="adam", learning_rate=1e-3, weight_decay=0.0, clip_norm=1.0)
_DEPTH = 3
TEST_IMAGES = {False: 10_000, True: 2_500}
"""Test images that merged networks are judged by: all of MNIST's, and the first of CIFAR-10's."""
CALIBRATION_IMAGES = 512
"""Training images that merged networks are repaired with."""


def perceptron_size(name: str) -> tuple[int, int] | None:
    """Neurons per hidden layer and number of hidden layers of a family of perceptrons; None for other families."""
    match = re.fullmatch(r"mlp(\d+)(?:x(\d+))?", name)
    return (int(match[1]), int(match[2] or _DEPTH)) if match else None


def family_config(name: str) -> EndpointConfig:
    """What a family's networks are and how they are trained.

    Raises
    ------
    ValueError
        If there is no such family.
    """
    if size := perceptron_size(name):
        width, depth = size
        return EndpointConfig("mnist", f"mlp:{'-'.join([str(width)] * depth)}", _PERCEPTRON)
    match = re.fullmatch(r"(resnet|vgg)(\d+(?:\.\d+)?)", name)
    if match is None:
        raise ValueError(f"there is no family {name!r}; use mlpW, mlpWxD, resnetW or vggW with a width W and a depth D")
    kind, factor = match.groups()
    networks = SCALES["cpu"]().networks
    config = networks["resnet20-cifar10" if kind == "resnet" else "vgg16-cifar10"]
    if float(factor) == config.width:
        return config
    recipe = replace(config.recipe, epochs=2)
    if kind == "vgg":
        recipe = replace(recipe, optimizer="adam", learning_rate=3e-4, weight_decay=0.0)
    return replace(config, width=float(factor), train_size=20_000, recipe=recipe)


@dataclass(frozen=True)
class Quality:
    """Accuracy in [0, 1] and cross-entropy in nats on the test images."""

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of matching and averaging some networks, without REPAIR and with it.

    Attributes
    ----------
    objective
        Of the parameters, sum over pairs p < q.
    accuracy, loss, repaired_accuracy, repaired_loss
        See `Quality`.
    cpu_seconds
        Of the matching.
    """

    objective: float
    accuracy: float
    loss: float
    repaired_accuracy: float
    repaired_loss: float
    cpu_seconds: float


@dataclass(frozen=True)
class Family:
    """Networks of one architecture, trained alike from different seeds.

    Attributes
    ----------
    name
        ``mlpW``, ``mlpWxD``, ``resnetW`` or ``vggW`` with a width W and a depth D.
    data_root
        Folder of the data sets.
    cache
        Folder of the trained networks.
    """

    name: str
    data_root: Path
    cache: Path

    @functools.cached_property
    def config(self) -> EndpointConfig:
        """What determines the networks."""
        return family_config(self.name)

    @property
    def image(self) -> bool:
        """Whether the networks take CIFAR-10's images, not MNIST's."""
        return self.config.dataset == "cifar10"

    @functools.cache  # noqa: B019 - families are few and live as long as the process
    def spec(self) -> PermutationSpec:
        """The permutation groups, traced."""
        return PermutationSpec.from_module(self.network(), torch.zeros(2, *self._data.input_shape))

    def network(self) -> nn.Module:
        """An untrained network."""
        data = self._data
        return build_model(
            self.config.model,
            input_shape=data.input_shape,
            num_classes=data.num_classes,
            width=self.config.width,
            norm=self.config.norm,
        )

    def endpoints(self, seeds: Iterable[int]) -> list[dict[str, Tensor]]:
        """State dicts of the endpoints of given seeds; those that the cache lacks are trained."""
        return [self._store.get(self.config.with_seed(seed)).state_dict for seed in seeds]

    def quality(self, state_dict: dict[str, Tensor]) -> Quality:
        """How a network does on the test images (MNIST: all; CIFAR-10: the first 2,500)."""
        network = self.network().eval()
        network.load_state_dict(state_dict)
        images, labels = self.split("test", TEST_IMAGES[self.image])
        with torch.no_grad():
            outputs = torch.cat([network(batch) for batch in torch.split(images, 500)])
        accuracy = float((outputs.argmax(1) == labels).float().mean())
        return Quality(accuracy, float(functional.cross_entropy(outputs, labels)))

    def merged_quality(self, mapped: Sequence[dict[str, Tensor]]) -> tuple[Quality, Quality]:
        """How the average of mapped networks does, before and after REPAIR with `CALIBRATION_IMAGES`."""
        merged = average(mapped)
        calibration, _ = self.split("train", CALIBRATION_IMAGES)
        repaired = repair(self.network(), merged, mapped, calibration, device="cpu")
        return self.quality(merged), self.quality(repaired)

    def merge(self, networks: Sequence[int], matcher: Matcher) -> Merged:
        """Match the networks of the given seeds, average, repair, judge."""
        chosen, spec = self.endpoints(networks), self.spec()
        started = time.process_time()
        alignment = align(chosen, spec, matcher=matcher, device="cpu")
        seconds = time.process_time() - started
        merged, repaired = self.merged_quality(alignment.apply(chosen))
        return Merged(
            objective=alignment.objective / 2,
            accuracy=merged.accuracy,
            loss=merged.loss,
            repaired_accuracy=repaired.accuracy,
            repaired_loss=repaired.loss,
            cpu_seconds=seconds,
        )

    def split(self, part: Literal["train", "test"], count: int) -> tuple[Tensor, Tensor]:
        """The first test images or the last training images, as the networks take them, and their labels."""
        data = self._data
        if part == "test":
            chosen = data.test.select(torch.arange(count))
        else:
            chosen = data.train.select(torch.arange(len(data.train) - count, len(data.train)))
        return chosen.inputs(), chosen.labels

    def foreign(self, count: int) -> Tensor:
        """The last training images of the other data set, cut or padded to these networks' inputs."""
        other = find_data("mnist" if self.image else "cifar10", self.data_root).train
        images = other.select(torch.arange(len(other) - count, len(other))).inputs()
        if self.image:
            return functional.pad(images, (2, 2, 2, 2)).repeat(1, 3, 1, 1)
        return images.mean(1, keepdim=True)[:, :, 2:30, 2:30]

    @functools.cached_property
    def _data(self) -> ImageData:
        return self._store.data(self.config)

    @functools.cached_property
    def _store(self) -> EndpointStore:
        return EndpointStore(self.cache, self.data_root, torch.device("cpu"))
