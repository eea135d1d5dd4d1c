"""What draws the steps of a random network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from torch import Tensor, nn

Draw = Callable[[st.SearchStrategy[Any]], Any]
Step = Callable[[Any, Tensor, list[Tensor]], Tensor]
"""From a layer, the latest tensor and all earlier ones; a closure over the layer would escape copies of the network."""


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


class Builder:
    """Draws steps; knows the number of channels before each."""

    def __init__(self, draw: Draw, channels: int) -> None:
        self.draw = draw
        self.channels = [channels]
        self.steps: list[tuple[str, Step, nn.Module]] = []

    @property
    def now(self) -> int:
        return self.channels[-1]

    def add(self, name: str, step: Step, channels: int, layer: nn.Module | None = None) -> None:
        self.steps.append((name, step, layer or nn.Identity()))
        self.channels.append(channels)

    def width(self) -> int:
        return int(self.draw(st.sampled_from([2, 3, 4, 6, 8])))

    def step(self, kinds: dict[str, Callable[[Builder], None]]) -> None:
        kinds[self.draw(st.sampled_from(sorted(kinds)))](self)
