"""Endpoint networks: trained once, kept under a key of everything that determines them.

A file holds one network. It is written whole or not at all, and a network whose training was cut off goes on after its
last whole epoch.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from clients.data import ImageData, Split, load_data
from clients.models import Norm, build_model
from clients.training import derive_seed, deterministic, evaluate
from simulations.laboratory.training import Recipe, train

_FORMAT = 1
_SUBSET_SEED = 7


@dataclass(frozen=True)
class EndpointConfig:
    """What determines a trained network, but for the data's own bytes and rounding.

    Attributes
    ----------
    dataset
        Name of the data set.
    model, width, norm
        See `clients.models.build_model`.
    recipe
        How to train.
    train_size
        Number of training images, a random part that is the same for all seeds; 0 for all of them.
    seed
        Of the initialisation, the order of the images and their augmentation.
    """

    dataset: str
    model: str
    recipe: Recipe
    width: float = 1.0
    norm: Norm = "layer"
    train_size: int = 0
    seed: int = 0

    @property
    def label(self) -> str:
        """For people."""
        norm = " BatchNorm" if self.norm == "batch" else ""
        width = "" if self.model.startswith("mlp") else f"-{self.width:g}x"
        return f"{_MODEL_LABELS.get(self.model, self.model)}{width}{norm}, {self.dataset}"

    @property
    def about(self) -> str:
        """All of it but the seed, in words."""
        width = "" if self.model.startswith("mlp:") else f" {self.width:g}x"
        norm = f", {self.norm} norm" if self.model in ("resnet20", "vgg16") else ""
        images = f"{self.train_size:,} training images" if self.train_size else "all training images"
        return f"{self.model}{width}{norm} on {self.dataset}, {images}, {self.recipe.about}"

    def build(self, data: ImageData) -> nn.Module:
        """The network with random weights, from torch's global generator."""
        return build_model(
            self.model,
            input_shape=data.input_shape,
            num_classes=data.num_classes,
            width=self.width,
            norm=self.norm,
        )

    def with_seed(self, seed: int) -> EndpointConfig:
        """The same network from another seed."""
        return replace(self, seed=seed)


_MODEL_LABELS = {"mlp": "MLP", "cnn": "CNN", "resnet20": "ResNet20", "vgg16": "VGG16"}


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A trained network."""

    config: EndpointConfig
    state_dict: dict[str, Tensor]
    seconds: float
    hardware: str


def find_data(name: str, data_dir: Path) -> ImageData:
    """A data set from ``NAME.npz`` in the folder if it is there, else by its name.

    ``"digits-32"`` is the embedded digits, enlarged to three channels of 32x32 pixels.
    """
    if name == "digits-32":
        digits = load_data("digits")
        return ImageData(name, _enlarged(digits.train), _enlarged(digits.test), digits.num_classes)
    archive = data_dir / f"{name}.npz"
    return load_data(str(archive.resolve()) if archive.is_file() else name, str(data_dir))


def _enlarged(split: Split) -> Split:
    images = split.images.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat(1, 3, 1, 1)
    return Split(images, split.labels, split.mean.repeat(3), split.std.repeat(3))


def training_split(data: ImageData, size: int) -> Split:
    """The images that all endpoints of a configuration share."""
    if size == 0 or size >= len(data.train):
        return data.train
    generator = torch.Generator().manual_seed(_SUBSET_SEED)
    return data.train.select(torch.randperm(len(data.train), generator=generator)[:size])


def fingerprint(split: Split) -> str:
    """A short name of a split's content: labels in their order, and the images' bytes."""
    digest = hashlib.sha256(split.labels.numpy().tobytes())
    digest.update(split.images.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class EndpointStore:
    """Trains endpoints, or finds them in a folder.

    Parameters
    ----------
    folder
        Where the networks are kept.
    data_dir
        Where the data sets are.
    device
        Where to train.
    """

    def __init__(self, folder: Path, data_dir: Path, device: torch.device) -> None:
        self.folder = folder
        self.data_dir = data_dir
        self.device = device
        self._fingerprints: dict[tuple[str, int], str] = {}

    def data(self, dataset: str) -> ImageData:
        """A data set by name."""
        return find_data(dataset, self.data_dir)

    def training(self, config: EndpointConfig) -> Split:
        """The images that a configuration's endpoints are trained on."""
        return training_split(self.data(config.dataset), config.train_size)

    def path(self, config: EndpointConfig) -> Path:
        """Where a network is, or will be."""
        where = (config.dataset, config.train_size)
        if where not in self._fingerprints:
            self._fingerprints[where] = fingerprint(self.training(config))
        content = {"format": _FORMAT, "data": self._fingerprints[where], **asdict(config)}
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        model = config.model.replace(":", "-")
        name = f"{config.dataset}-{model}-{config.width:g}x-{config.norm}-seed{config.seed}-{key}.pt"
        return self.folder / name

    def get(self, config: EndpointConfig) -> Endpoint:
        """The network of a configuration, trained now if it is not in the folder."""
        path = self.path(config)
        if not path.is_file():
            self._train(config, path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Endpoint(config, content["state_dict"], content["seconds"], content["hardware"])

    def _train(self, config: EndpointConfig, path: Path) -> None:
        data = self.data(config.dataset)
        started = time.perf_counter()
        with deterministic(derive_seed(config.seed)):
            model = config.build(data)
            state = path.with_name(f".{path.stem}.state")
            loss = train(model, self.training(config), config.recipe, self.device, config.seed, state=state)
        seconds = time.perf_counter() - started
        accuracy = evaluate(model, data.test.inputs(), data.test.labels, self.device).accuracy
        content = {
            "config": asdict(config),
            "state_dict": {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
            "seconds": seconds,
            "hardware": hardware(self.device),
            "loss": loss,
            "test_accuracy": accuracy,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(content, partial)
        os.replace(partial, path)
        print(
            f"trained {config.label}, seed {config.seed}: test accuracy {accuracy:.2%}, loss {loss:.3f}, "
            f"{seconds:.0f} s, {path.name}",
            flush=True,
        )


def hardware(device: torch.device) -> str:
    """What ran it, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread" + ("" if threads == 1 else "s")


@lru_cache(maxsize=1)
def _processor() -> str:
    """The processor's name where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU {names[0]}" if names else f"CPU {platform.machine()}"
