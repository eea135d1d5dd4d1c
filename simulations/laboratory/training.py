"""Training of endpoint networks: data and augmentation on the device, bfloat16 and channels-last where they are faster.

Where a file for its state is given, training writes it after each epoch, and one that was cut off goes on from there to
the same bits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

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
        ``"sgd"`` (with momentum 0.9), ``"adam"``, or ``"adamw"``, whose decay acts on matrices and kernels alone, not on
        biases and norms.
    learning_rate
        Its peak.
    weight_decay
        Of the optimizer.
    warmup_epochs
        Over which the learning rate rises linearly from zero to its peak.
    decay
        How it falls to zero after the peak: ``"cosine"`` or ``"linear"``. A linear rise and a linear fall are the
        one-cycle rate (Smith & Topin 2019) without its last, even smaller rates.
    restart_epochs
        Length of a period, after which the learning rate starts again from its peak; 0 for a single period over
        the whole training.
    augment
        Whether images are flipped and shifted by up to 4 pixels at random.
    precision
        Of the forward and backward pass; parameters are float32.
    clip_norm
        Bound on the gradient's norm; 0 for none.
    label_smoothing
        Share of each label that all classes get in equal parts.
    """

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0
    decay: Literal["cosine", "linear"] = "cosine"
    restart_epochs: int = 0
    augment: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    clip_norm: float = 0.0
    label_smoothing: float = 0.0

    @property
    def about(self) -> str:
        """All of it in words, but what is at its default."""
        default = Recipe(self.epochs, self.batch_size)
        shown = ("optimizer", "learning_rate", "weight_decay")
        more = [
            f"{each.name.replace('_', ' ')} {getattr(self, each.name):g}"
            if isinstance(getattr(self, each.name), float)
            else f"{each.name.replace('_', ' ')} {getattr(self, each.name)}"
            for each in fields(self)[2:]
            if each.name in shown or getattr(self, each.name) != getattr(default, each.name)
        ]
        return f"{self.epochs} epochs, batch {self.batch_size}, {', '.join(more)}"

    def rate(self, epoch: float) -> float:
        """The learning rate at a fraction of the training, counted in epochs."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        period = self.restart_epochs or self.epochs
        start = self.warmup_epochs if epoch < period else 0.0
        position = (epoch % period - start) / (period - start)
        if self.decay == "linear":
            return self.learning_rate * (1.0 - position)
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


def train(
    model: nn.Module, split: Split, recipe: Recipe, device: torch.device, seed: int, *, state: Path | None = None
) -> float:
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
    state
        File in which each whole epoch is written, and from which a training that was cut off goes on; it is removed at
        the end. None for neither.

    Returns
    -------
    float
        Mean loss of the last epoch.
    """
    inputs, labels = split.inputs().to(device), split.labels.to(device)
    model.to(device).to(memory_format=torch.channels_last).train()
    run = _Run(model, _optimizer(model, recipe), torch.Generator(device).manual_seed(seed), recipe)
    run.restore(state)
    while run.epoch < recipe.epochs:
        run.train_epoch(inputs, labels)
        run.save(state)
    if state is not None:
        state.unlink(missing_ok=True)
    return run.loss


@dataclass(eq=False)
class _Run:
    """A training under way: all that the next epoch depends on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    recipe: Recipe
    epoch: int = 0
    loss: float = math.nan

    def train_epoch(self, inputs: Tensor, labels: Tensor) -> None:
        recipe = self.recipe
        steps = max(1, len(labels) // recipe.batch_size)
        total = torch.zeros((), device=inputs.device)
        order = torch.randperm(len(labels), generator=self.generator, device=inputs.device)
        for step, batch in enumerate(torch.split(order, recipe.batch_size)[:steps]):
            # While it rises, the rate is the one at the end of the step: that of the first would be zero.
            rising = self.epoch < recipe.warmup_epochs
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.rate(self.epoch + (step + rising) / steps)
            images = augment(inputs[batch], self.generator) if recipe.augment else inputs[batch]
            total += self._step(images.contiguous(memory_format=torch.channels_last), labels[batch])
        self.epoch += 1
        self.loss = float(total / steps)

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        recipe = self.recipe
        with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            outputs = self.model(images)
        loss = functional.cross_entropy(outputs.float(), labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def save(self, path: Path | None) -> None:
        if path is None:
            return
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "loss": self.loss,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        torch.save(content, partial)
        os.replace(partial, path)

    def restore(self, path: Path | None) -> None:
        if path is None or not path.is_file():
            return
        content: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.generator.set_state(content["generator"])
        self.epoch, self.loss = content["epoch"], content["loss"]


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay, foreach=True)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, foreach=True)
    groups = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, foreach=True)
