"""Inputs that a server may have in place of the clients' data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from clients.data import ImageData, load_data

Inputs = tuple[Tensor, Tensor | None]
"""Inputs of the network, and labels where they are known."""


def own(data: ImageData, indices: Tensor, size: int) -> Inputs:
    """Training images that no client holds."""
    split = data.train.select(indices[:size])
    return split.inputs(), split.labels


def enlarged_digits(data: ImageData, _indices: Tensor) -> Inputs:
    """scikit-learn's 8x8 digits, in the middle of a larger image."""
    height, width = data.input_shape[1:]
    small = load_data("digits").train.images[:256].float() / 16 * 255
    inner = functional.interpolate(small, size=(height * 5 // 7, width * 5 // 7), mode="bilinear")
    rows, columns = height - inner.shape[2], width - inner.shape[3]
    padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return _normalised(data, functional.pad(inner, padding)), None


def shuffled(data: ImageData, indices: Tensor) -> Inputs:
    """The right images, with their pixels in another order, the same for all."""
    images = data.train.images[indices[:256]]
    order = torch.randperm(images[0].numel(), generator=torch.Generator().manual_seed(5))
    return _normalised(data, images.flatten(1)[:, order].view(images.shape).float()), None


def inverted(data: ImageData, indices: Tensor) -> Inputs:
    """The right images, black for white."""
    return _normalised(data, 255 - data.train.images[indices[:256]].float()), None


def three_classes(data: ImageData, indices: Tensor) -> Inputs:
    """Images of the first three classes alone."""
    chosen = indices[data.train.labels[indices] < 3][:256]
    split = data.train.select(chosen)
    return split.inputs(), split.labels


def noise(data: ImageData, _indices: Tensor) -> Inputs:
    """Uniform noise."""
    return _normalised(data, 255 * torch.rand(256, *data.input_shape, generator=torch.Generator().manual_seed(5))), None


def _normalised(data: ImageData, images: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    return (images - data.train.mean.view(shape)) / data.train.std.view(shape)


INPUTS: Mapping[str, Callable[[ImageData, Tensor], Inputs]] = {
    "own": lambda data, indices: own(data, indices, 256),
    "own-64": lambda data, indices: own(data, indices, 64),
    "own-32": lambda data, indices: own(data, indices, 32),
    "digits": enlarged_digits,
    "shuffled": shuffled,
    "inverted": inverted,
    "three-classes": three_classes,
    "noise": noise,
}
"""By name; each makes inputs of a data set and of the indices of training images that no client holds."""
