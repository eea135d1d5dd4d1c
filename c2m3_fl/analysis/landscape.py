"""The loss landscape in the plane of three networks (C2M3, Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from c2m3_fl.analysis.barrier import Loss


@dataclass(frozen=True)
class Landscape:
    """A loss over a plane in weight space.

    Attributes
    ----------
    x, y
        Coordinates of the grid, in units of weight space.
    losses
        ``losses[j][i]`` is the loss at ``(x[i], y[j])``.
    corners
        The plane's coordinates of the three networks, in their order.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    corners: tuple[tuple[float, float], ...]


class Plane:
    """The plane through three networks, with an orthonormal basis: the first is the origin, the second on the x axis.

    Parameters
    ----------
    a, b, c
        State dicts with equal names and shapes. Tensors that are not of floating point are those of `a` everywhere.

    Raises
    ------
    ValueError
        If the three are on one line.
    """

    def __init__(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor], c: Mapping[str, Tensor]) -> None:
        self.origin = dict(a)
        self._names = [name for name, tensor in a.items() if tensor.dtype.is_floating_point]
        start = self._flat(a)
        first, second = self._flat(b) - start, self._flat(c) - start
        length = float(first.norm())
        if length == 0.0:
            raise ValueError("the first two networks are equal: three networks on one line span no plane")
        self.x_axis = first / length
        along = float(second @ self.x_axis)
        rest = second - along * self.x_axis
        height = float(rest.norm())
        if height <= 1e-6 * max(length, float(second.norm())):
            raise ValueError("three networks on one line span no plane")
        self.y_axis = rest / height
        self.corners = ((0.0, 0.0), (length, 0.0), (along, height))

    def at(self, x: float, y: float) -> dict[str, Tensor]:
        """The network at a point of the plane."""
        direction = x * self.x_axis + y * self.y_axis
        network = dict(self.origin)
        sizes = [self.origin[name].numel() for name in self._names]
        for name, part in zip(self._names, torch.split(direction, sizes), strict=True):
            tensor = self.origin[name].detach()
            network[name] = (tensor.double() + part.view(tensor.shape)).to(tensor.dtype)
        return network

    def _flat(self, network: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([network[name].detach().double().flatten() for name in self._names])


def landscape(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    c: Mapping[str, Tensor],
    loss: Loss,
    *,
    points: int = 15,
    margin: float = 0.2,
) -> Landscape:
    """Measure a loss on a grid over the plane of three networks.

    Parameters
    ----------
    a, b, c
        State dicts.
    loss
        What to measure; called ``points ** 2`` times.
    points
        Of the grid, in each direction.
    margin
        By how much the grid reaches beyond the three networks, as a part of their extent.
    """
    plane = Plane(a, b, c)
    x, y = (_grid([corner[axis] for corner in plane.corners], points, margin) for axis in (0, 1))
    losses = tuple(tuple(loss(plane.at(u, v)) for u in x) for v in y)
    return Landscape(x, y, losses, plane.corners)


def _grid(coordinates: list[float], points: int, margin: float) -> tuple[float, ...]:
    low, high = min(coordinates), max(coordinates)
    reach = margin * (high - low)
    return tuple(torch.linspace(low - reach, high + reach, points, dtype=torch.float64).tolist())
