"""Networks by name, sized for a data set.

The multilayer perceptron, ResNet20 and VGG16 follow C2M3, appendix A.6; `cnn` is a small network for quick runs, and
``torchvision:NAME`` is any of torchvision's classification networks, from random weights. All of them can be traced by
`torch.export`, and all carry permutation symmetries in every hidden layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["layer", "batch"]
NORMS: tuple[Norm, ...] = ("layer", "batch")

_MLP_WIDTHS = (256, 512, 512, 256)
_RESNET20_WIDTHS = (16, 32, 64)
_RESNET20_BLOCKS = 3
_VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_TORCHVISION = "torchvision:"
_PERCEPTRON = "mlp:"


class ModelError(ValueError):
    """A network that does not exist, or that cannot take the data it is asked to take."""


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels, at every position of an image on its own.

    This is how Flax's ``LayerNorm`` acts on channels-last images, hence what Git Re-Basin and C2M3 train. Statistics
    over the channels do not depend on the channels' order, and the affine parameters move with the channels.

    Parameters
    ----------
    channels
        Number of channels of the input, an image batch (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch (N, C, H, W)."""
        normalised: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normalised.permute(0, 3, 1, 2)


def _norm(kind: Norm, channels: int) -> nn.Module:
    return LayerNorm2d(channels) if kind == "layer" else nn.BatchNorm2d(channels)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


class MLP(nn.Module):
    """Multilayer perceptron on the flattened input, ReLU inside and log-softmax at the end (C2M3, A.6).

    Parameters
    ----------
    in_features
        Number of inputs after flattening.
    hidden
        Widths of the hidden layers.
    num_classes
        Number of outputs.
    """

    def __init__(self, in_features: int, hidden: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        sizes = (in_features, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.output = nn.Linear(sizes[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (N, num_classes) of a batch (N, ...)."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = functional.relu(layer(x))
        return functional.log_softmax(self.output(x), dim=1)


class CNN(nn.Module):
    """Two convolutions and one hidden layer; the flattened feature map carries the channels' symmetry.

    Parameters
    ----------
    input_shape
        Channels, height and width of the input image.
    channels
        Channels of the two convolutions.
    hidden
        Width of the hidden layer.
    num_classes
        Number of outputs.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], channels: tuple[int, int], hidden: int, num_classes: int
    ) -> None:
        super().__init__()
        in_channels, height, width = input_shape
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 3, padding=1)
        self.hidden = nn.Linear(channels[1] * (height // 4) * (width // 4), hidden)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of a batch (N, C, H, W)."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.hidden(x.flatten(1)))
        logits: Tensor = self.output(x)
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, a 1x1 projection where the shape changes (He et al. 2016, option B)."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), _norm(norm, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """ResNet20 for small images: a stem and three stages of three residual blocks (He et al. 2016; C2M3, A.6).

    Parameters
    ----------
    in_channels
        Channels of the input image.
    num_classes
        Number of outputs.
    width
        Multiplies the stages' 16, 32 and 64 channels.
    norm
        ``"layer"`` as in the paper's main results, ``"batch"`` as in its appendix B.1.1.
    """

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0, norm: Norm = "layer") -> None:
        super().__init__()
        widths = [_scaled(channels, width) for channels in _RESNET20_WIDTHS]
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.norm = _norm(norm, widths[0])
        blocks: list[nn.Module] = []
        previous = widths[0]
        for stage, channels in enumerate(widths):
            for block in range(_RESNET20_BLOCKS):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ResidualBlock(previous, channels, stride, norm))
                previous = channels
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of a batch (N, C, H, W)."""
        x = self.blocks(functional.relu(self.norm(self.conv(x))))
        logits: Tensor = self.output(x.mean(dim=(2, 3)))
        return logits


class VGG16(nn.Module):
    """VGG16 for images of at least 32x32, with a norm after each convolution (Simonyan & Zisserman 2015; C2M3, Eq. 9).

    Parameters
    ----------
    input_shape
        Channels, height and width of the input image.
    num_classes
        Number of outputs.
    width
        Multiplies all hidden sizes.
    norm
        Normalisation after each convolution; the paper's is ``"layer"``.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], num_classes: int, width: float = 1.0, norm: Norm = "layer"
    ) -> None:
        super().__init__()
        previous, height, image_width = input_shape
        layers: list[nn.Module] = []
        for stage in _VGG16_STAGES:
            for channels in (_scaled(c, width) for c in stage):
                layers += [nn.Conv2d(previous, channels, 3, padding=1), _norm(norm, channels), nn.ReLU()]
                previous = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = _scaled(512, width)
        shrink = 2 ** len(_VGG16_STAGES)
        self.classifier = nn.Sequential(
            nn.Linear(previous * (height // shrink) * (image_width // shrink), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of a batch (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


@dataclass(frozen=True)
class _Request:
    """What `build_model` was asked for, checked."""

    input_shape: tuple[int, int, int]
    num_classes: int
    width: float
    norm: Norm


def _mlp(r: _Request) -> nn.Module:
    hidden = tuple(_scaled(size, r.width) for size in _MLP_WIDTHS)
    return MLP(math.prod(r.input_shape), hidden, r.num_classes)


def _perceptron(sizes: str, r: _Request) -> nn.Module:
    if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", sizes):
        raise ModelError(f"{_PERCEPTRON}{sizes} needs the widths of the hidden layers, as in {_PERCEPTRON}512-512.")
    hidden = tuple(_scaled(int(size), r.width) for size in sizes.split("-"))
    return MLP(math.prod(r.input_shape), hidden, r.num_classes)


def _cnn(r: _Request) -> nn.Module:
    channels = (_scaled(32, r.width), _scaled(64, r.width))
    return CNN(r.input_shape, channels, _scaled(128, r.width), r.num_classes)


def _resnet20(r: _Request) -> nn.Module:
    return ResNet20(r.input_shape[0], r.num_classes, r.width, r.norm)


def _vgg16(r: _Request) -> nn.Module:
    return VGG16(r.input_shape, r.num_classes, r.width, r.norm)


_FACTORIES: dict[str, tuple[int, Callable[[_Request], nn.Module]]] = {
    # name: (least height and width of an image, factory)
    "mlp": (1, _mlp),
    "cnn": (4, _cnn),
    "resnet20": (4, _resnet20),
    "vgg16": (32, _vgg16),
}
MODELS = tuple(_FACTORIES)
"""Names that `build_model` knows, besides ``mlp:WIDTHS`` and ``torchvision:NAME``."""


def _torchvision(name: str, r: _Request) -> nn.Module:
    # Imported where it is used: no other network needs it.
    import torchvision.models as zoo  # noqa: PLC0415

    if name not in zoo.list_models(module=zoo):
        raise ModelError(f"torchvision has no classification network {name!r}; see torchvision.models.list_models().")
    if r.input_shape[0] != 3:
        raise ModelError(f"torchvision:{name} takes images of 3 channels, the data have {r.input_shape[0]}.")
    if r.width != 1 or r.norm != "layer":
        raise ModelError(f"torchvision:{name} takes neither model-width nor model-norm; leave them at their defaults.")
    # Their auxiliary classifiers make the output depend on the mode, and their default warns about its initialisation.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = zoo.get_model(name, weights=None, num_classes=r.num_classes, **options)
    return network


def build_model(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    norm: Norm = "layer",
) -> nn.Module:
    """A network with random weights, drawn from torch's global generator.

    Parameters
    ----------
    name
        ``"mlp"`` (C2M3, A.6), ``"mlp:512-512"`` with hidden layers of one's own, ``"cnn"``, ``"resnet20"``, ``"vgg16"``
        or ``"torchvision:NAME"``.
    input_shape
        Channels, height and width of an input.
    num_classes
        Number of outputs.
    width
        Multiplies the number of hidden units or channels (the paper's widen factor).
    norm
        ``"layer"`` or ``"batch"``, for `resnet20` and `vgg16`; `mlp` and `cnn` have none.

    Returns
    -------
    nn.Module
        The network, in training mode, on the CPU.

    Raises
    ------
    ModelError
        If there is no such network, or if it cannot take such images.
    """
    if norm not in NORMS:
        raise ModelError(f"model-norm {norm!r} is not one of {', '.join(NORMS)}.")
    if not (math.isfinite(width) and width > 0):
        raise ModelError(f"model-width must be positive and finite, not {width}.")
    request = _Request(input_shape, num_classes, width, norm)
    if name.startswith(_TORCHVISION):
        return _torchvision(name.removeprefix(_TORCHVISION), request)
    if name.startswith(_PERCEPTRON):
        return _perceptron(name.removeprefix(_PERCEPTRON), request)
    if name not in _FACTORIES:
        raise ModelError(
            f"There is no network {name!r}. Choose one of {', '.join(MODELS)}, {_PERCEPTRON}WIDTHS or {_TORCHVISION}NAME."
        )
    least, factory = _FACTORIES[name]
    _, height, image_width = input_shape
    if min(height, image_width) < least:
        raise ModelError(f"{name} needs images of at least {least}x{least}, the data have {height}x{image_width}.")
    return factory(request)
