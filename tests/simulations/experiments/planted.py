"""A laboratory whose networks are known: one trained network under random permutations, with noise where it is asked for.

Training labels are what the network itself says, so that it is right on every training image; on a quarter of the test
images it is wrong, by construction. Merged without noise, the network itself is the right answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from c2m3_fl.symmetry import PermutationSpec
from clients.data import ImageData, Split
from simulations.laboratory.endpoints import Endpoint, EndpointConfig, EndpointStore, find_data
from simulations.laboratory.experiment import Experiment
from simulations.laboratory.laboratory import Group, Laboratory, Network
from simulations.laboratory.ledger import Cell, Record
from simulations.laboratory.scales import SCALES, Sizes
from simulations.laboratory.training import train

NETWORK = "mlp-mnist"
WRONG_EVERY = 4
_CPU = torch.device("cpu")


@cache
def _teacher() -> nn.Module:
    digits = find_data("digits", Path())
    config = SCALES["smoke"]().networks[NETWORK]
    torch.manual_seed(0)
    module = config.build(digits)
    train(module, digits.train, config.recipe, _CPU, 0)
    return module


class PlantedStore(EndpointStore):
    """Gives the same network for every seed, its neurons in an order of the seed's own, and with noise of its own."""

    def __init__(self, noise: float) -> None:
        super().__init__(Path(), Path(), _CPU)
        self.noise = noise
        digits = find_data("digits", Path())
        self.module = _teacher()
        self.teacher: Network = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.spec = PermutationSpec.from_module(self.module, digits.test.inputs()[:2])
        wrong = torch.arange(len(digits.test)) % WRONG_EVERY == 0
        test = self._labelled(digits.test)
        test = replace(test, labels=torch.where(wrong, (test.labels + 1) % 10, test.labels))
        self.digits = ImageData("digits", self._labelled(digits.train), test, 10)

    def _labelled(self, split: Split) -> Split:
        with torch.no_grad():
            return replace(split, labels=self.module(split.inputs()).argmax(1))

    def data(self, dataset: str) -> ImageData:
        return self.digits

    def get(self, config: EndpointConfig) -> Endpoint:
        generator = torch.Generator().manual_seed(config.seed)
        noisy = {
            name: tensor + self.noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
            for name, tensor in self.teacher.items()
        }
        return Endpoint(config, self.spec.apply(noisy, self.spec.random(generator)), 0.0, "")


def laboratory(noise: float = 0.0) -> Laboratory:
    """A laboratory of planted networks, at the smallest size."""
    smoke = SCALES["smoke"]()
    scale = replace(
        smoke,
        networks=dict.fromkeys(smoke.networks, smoke.networks[NETWORK]),
        many={NETWORK: (2, 3)},
        widths={NETWORK: (smoke.networks[NETWORK].width,)},
        sizes={"mlp": Sizes(0, 128, 256)},
        compared={NETWORK: (3,)},
    )
    return Laboratory(scale, PlantedStore(noise))


def cells(experiment: Experiment, lab: Laboratory) -> list[Cell]:
    """The cells of an experiment on the planted network."""
    return [cell for cell in experiment.cells(lab) if cell.about["network"] == NETWORK]


@cache
def measured(experiment: Experiment, lab: Laboratory) -> list[Record]:
    """All cells of an experiment on the planted network, measured."""
    return [Record(cell.about, cell.measure(), 1.0, "here", cell.depends) for cell in cells(experiment, lab)]


def group(lab: Laboratory, *seeds: int) -> Group:
    """The planted networks of some seeds."""
    return lab.group(lab.scale.networks[NETWORK], seeds)


def objective(networks: list[Mapping[str, Tensor]]) -> float:
    """The objective of mapped networks, pair by pair (Eq. 4): ordered pairs, weights 1."""
    vectors = [torch.cat([tensor.double().flatten() for tensor in network.values()]) for network in networks]
    return float(sum(a @ b for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j))


def numbers(value: Any) -> list[float]:
    """All numbers in a nest of lists and mappings."""
    if isinstance(value, Mapping):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list | tuple):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []
