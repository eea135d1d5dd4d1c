"""A network of the table of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Example:
    """Inputs of a network, random and repeatable, by their shapes.

    Attributes
    ----------
    shapes
        Shape of each input.
    names
        Names of the inputs that go in as keyword arguments, the last ones; all others go in by position.
    below
        For inputs that are numbers of tokens, the size of the vocabulary, by position; None for real inputs.
    """

    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...] = ()
    below: tuple[int | None, ...] = ()

    def draw(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Positional and keyword arguments."""
        generator = torch.Generator().manual_seed(0)
        below = self.below or (None,) * len(self.shapes)
        tensors = [
            torch.randn(shape, generator=generator) if n is None else torch.randint(3, n, shape, generator=generator)
            for shape, n in zip(self.shapes, below, strict=True)
        ]
        cut = len(tensors) - len(self.names)
        return tensors[:cut], dict(zip(self.names, tensors[cut:], strict=True))


@dataclass(frozen=True)
class Architecture:
    """A network of the table, and a small version of it for tests.

    Attributes
    ----------
    family
        What it stands for.
    make
        Factory of the network.
    example
        Its inputs.
    small, small_example
        A smaller version; None where the network is small itself.
    sent
        For networks of which a part is trained, whether clients send a tensor of this name.
    least
        Share of the parameters that moves at least, in the small version too.
    """

    family: str
    make: Callable[[], nn.Module]
    example: Example
    small: Callable[[], nn.Module] | None = None
    small_example: Example | None = None
    sent: Callable[[str], bool] | None = None
    least: float = 0.99

    def build(self, *, small: bool = False) -> tuple[nn.Module, list[Tensor], dict[str, Tensor]]:
        """The network at fixed random weights, in eval mode, and its inputs."""
        torch.manual_seed(0)
        network = (self.small or self.make)() if small else self.make()
        args, kwargs = ((self.small_example if small else None) or self.example).draw()
        return network.eval(), args, kwargs


def images(*shape: int) -> Example:
    """One batch of images."""
    return Example((shape,))


def tokens(*shape: int, below: int) -> Example:
    """One batch of texts."""
    return Example((shape,), below=(below,))


def named(inputs: Mapping[str, Sequence[int]], vocabulary: int) -> Example:
    """Inputs by keyword; those whose name speaks of ids are tokens."""
    below = tuple(vocabulary if "ids" in name else None for name in inputs)
    return Example(tuple(tuple(shape) for shape in inputs.values()), tuple(inputs), below)


Table = dict[str, Architecture]
AnyConfig = Mapping[str, Any]
