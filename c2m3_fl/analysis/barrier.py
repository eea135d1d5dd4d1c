r"""Linear paths between networks, and the loss barrier on them (C2M3, Definition 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from c2m3_fl.averaging import average

Loss = Callable[[Mapping[str, Tensor]], float]
"""The loss of a network, given its state dict."""


@dataclass(frozen=True)
class Curve:
    """A quantity along the segment between two networks.

    Attributes
    ----------
    positions
        In [0, 1]: 0 is the first network, 1 the second.
    values
        The quantity at each of them.
    """

    positions: tuple[float, ...]
    values: tuple[float, ...]

    def barrier(self) -> float:
        r"""Largest rise above the mean of the two ends.

        .. math:: \max_\lambda L((1-\lambda)\Theta_A + \lambda\Theta_B) - \tfrac12 (L(\Theta_A) + L(\Theta_B))

        At least 0 where the ends are among the positions and the values are losses.
        """
        return max(self.values) - 0.5 * (self.values[0] + self.values[-1])


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], position: float) -> dict[str, Tensor]:
    r"""The network :math:`(1-\lambda)\Theta_A + \lambda\Theta_B`.

    Parameters
    ----------
    a, b
        State dicts with equal names, shapes and dtypes.
    position
        :math:`\lambda`, in [0, 1].

    Raises
    ------
    ClientError
        If the state dicts do not fit each other.
    ValueError
        If the position is not in [0, 1].
    """
    if not 0.0 <= position <= 1.0:
        raise ValueError(f"a position on the segment is in [0, 1], not {position}")
    return average([a, b], [1.0 - position, position])


def positions(count: int) -> tuple[float, ...]:
    """Equidistant positions from 0 to 1, at least two of them."""
    if count < 2:
        raise ValueError(f"a curve has at least its two ends, so {count} positions are too few")
    return tuple(torch.linspace(0.0, 1.0, count, dtype=torch.float64).tolist())


def curve(a: Mapping[str, Tensor], b: Mapping[str, Tensor], loss: Loss, at: Sequence[float]) -> Curve:
    """Measure a loss, or an accuracy, along the segment between two networks.

    Parameters
    ----------
    a, b
        State dicts with equal names, shapes and dtypes.
    loss
        What to measure.
    at
        Positions, ascending, from 0 to 1.
    """
    if len(at) < 2 or at[0] != 0.0 or at[-1] != 1.0:
        raise ValueError("the positions of a curve begin with 0 and end with 1")
    return Curve(tuple(at), tuple(loss(interpolate(a, b, position)) for position in at))


def loss_barrier(a: Mapping[str, Tensor], b: Mapping[str, Tensor], loss: Loss, points: int = 25) -> float:
    """The loss barrier between two networks, over equidistant points of their segment (C2M3, Definition 2.1)."""
    return curve(a, b, loss, positions(points)).barrier()
