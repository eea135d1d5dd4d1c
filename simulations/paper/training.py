"""Training of endpoint networks: data and augmentation on the device, bfloat16 and channels-last where they are faster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.data import Split

_PADDING = 4


@dataclass(frozen=True)
class Recipe:
    """How an endpoint is trained.

    Attributes
    ----------
    epochs
        Passes over the images.
    batch_size
        Images in a step; those left over at the end of an epoch are left out of it.
    optimizer
        ``"sgd"`` (with momentum 0.9) or ``"adam"``.
    learning_rate
        Its peak.
    weight_decay
        Of the optimizer.
    warmup_epochs
        Over which the learning rate rises from zero.
    restart_epochs
        Length of a cosine period, after which the learning rate starts again from its peak; 0 for a single period over
        the whole training.
    augment
        Whether images are flipped and shifted by up to 4 pixels at random.
    precision
        Of the forward and backward pass; parameters are float32.
    clip_norm
        Bound on the gradient's norm; 0 for none.
    """

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0
    restart_epochs: int = 0
    augment: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    clip_norm: float = 0.0

    def rate(self, epoch: float) -> float:
        """The learning rate at a fraction of the training, counted in epochs."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        period = self.restart_epochs or self.epochs
        start = self.warmup_epochs if epoch < period else 0.0
        position = (epoch % period - start) / (period - start)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * position))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the images (N, C, H, W) and shift each by up to 4 pixels, zeros coming in."""
    count, _, height, width = images.shape
    device = images.device
    padded = functional.pad(images, (_PADDING,) * 4)
    offsets = torch.randint(0, 2 * _PADDING + 1, (2, count, 1), generator=generator, device=device)
    flips = torch.randint(0, 2, (count, 1), generator=generator, device=device).bool()
    rows = offsets[0] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, -1)
    columns = offsets[1] + torch.where(flips, width - 1 - columns, columns)
    every = torch.arange(count, device=device)[:, None, None]
    # Advanced indices around the channels bring them to the end: channels-last, then seen as (N, C, H, W).
    return padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(model: nn.Module, split: Split, recipe: Recipe, device: torch.device, seed: int) -> float:
    """Train a network in place.

    Parameters
    ----------
    model
        Gives logits or log-probabilities; initialised.
    split
        Training images.
    recipe
        How.
    device
        Where; data are moved there once.
    seed
        Of the images' order and augmentation.

    Returns
    -------
    float
        Mean loss of the last epoch.
    """
    inputs, labels = split.inputs().to(device), split.labels.to(device)
    model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = _optimizer(model, recipe)
    generator = torch.Generator(device).manual_seed(seed)
    steps = max(1, len(labels) // recipe.batch_size)
    total = torch.zeros((), device=device)
    for epoch in range(recipe.epochs):
        total.zero_()
        order = torch.randperm(len(labels), generator=generator, device=device)
        for step, batch in enumerate(torch.split(order, recipe.batch_size)[:steps]):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(
                    epoch + (step + 1) / steps if epoch < recipe.warmup_epochs else epoch + step / steps
                )
            images = augment(inputs[batch], generator) if recipe.augment else inputs[batch]
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                outputs = model(images.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(outputs.float(), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            total += loss.detach()
    return float(total / steps)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True)
    return torch.optim.SGD(
        parameters, lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay, foreach=True
    )
