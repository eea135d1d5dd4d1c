"""Averages of clients: the weighted mean, and two that a few bad clients cannot move far.

A coordinate-wise median or trimmed mean compares the same entry of every client's tensors. That makes sense in the
universe, where entry by entry the clients' neurons correspond.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from c2m3_fl.errors import OptionError
from c2m3_fl.layout import StateDict
from c2m3_fl.round import Clients

AverageMethod = Literal["mean", "median", "trimmed-mean"]

TRIM_FRACTION = 0.2
"""Share of the clients that the trimmed mean leaves out at each end, entry by entry; at least one of three or more."""


def average(
    state_dicts: Sequence[Mapping[str, Any]],
    weights: Sequence[float] | None = None,
    *,
    method: AverageMethod = "mean",
) -> dict[str, Tensor]:
    """Average state dicts tensor by tensor (C2M3, Algorithm 2, line 5, for clients mapped to the universe).

    Parameters
    ----------
    state_dicts
        Tensors, or NumPy arrays, of equal names, shapes and dtypes; finite.
    weights
        One non-negative weight per state dict; None for equal weights. Only their ratios matter.
    method
        ``"mean"``; ``"median"`` or ``"trimmed-mean"``, entry by entry, for which every positive weight counts the same,
        since who is bad may also lie about its weight (Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018).

    Returns
    -------
    dict of str to Tensor
        New tensors with the names, shapes, dtypes and device of the first state dict's. Sums are made in float64, of
        complex numbers in complex128. Integers, such as BatchNorm's counters, are averaged and rounded; booleans are the
        weighted majority; tensors that all clients hold alike stay as they are, to the bit.

    Raises
    ------
    ClientError
        Naming the state dict that does not fit the others, or whose weight is unusable.
    OptionError
        If there is no such method.
    """
    if method not in get_args(AverageMethod):
        raise OptionError(f"there is no average {method!r}; choose one of {', '.join(get_args(AverageMethod))}")
    clients = Clients.of(state_dicts, weights)
    return average_clients(clients, clients.state_dicts, method, clients.alike)


def average_clients(
    clients: Clients, images: Sequence[StateDict], method: AverageMethod, alike: Collection[str]
) -> dict[str, Tensor]:
    """The average of clients, whose tensors are given as they came or as they are mapped to the universe.

    Parameters
    ----------
    clients
        The clients.
    images
        Their tensors, in the clients' order. One is asked for at a time if the mean is wanted.
    method
        See `average`.
    alike
        Names of tensors that are equal in all images.
    """
    if method == "mean":
        return _mean(clients, images, alike)
    counted = [image for image, weight in zip(images, clients.weights, strict=True) if weight > 0]
    return {
        name: counted[0][name].clone()
        if name in alike
        else _rounded(_middle([each[name] for each in counted], method), counted[0][name])
        for name in clients.layout
    }


def _mean(clients: Clients, images: Sequence[StateDict], alike: Collection[str]) -> dict[str, Tensor]:
    """Weighted mean. One image is asked for at a time: the sequence may make them on demand."""
    total = math.fsum(clients.weights)
    first: StateDict = {}
    sums: dict[str, Tensor] = {}
    finite: dict[str, Tensor] = {}
    for image, weight in zip(images, clients.weights, strict=True):
        if weight == 0:
            continue
        share = weight / total
        first = first or image
        for name, expected in clients.layout.items():
            if name in alike:
                continue
            part = _exact(image[name], first[name])
            if expected.infinite is not None:
                known = torch.isfinite(part)
                finite[name] = finite.get(name, 0.0) + share * known.double()
                part = torch.where(known, part, 0.0)
            if name in sums:
                sums[name].add_(part, alpha=share)
            else:
                sums[name] = part * share
    for name, shares in finite.items():  # where some clients know a range and others do not, those who do count
        sums[name] = torch.where(shares > 0, sums[name] / shares, first[name].double())
    return {
        name: first[name].clone() if name in alike else _rounded(sums[name], first[name]) for name in clients.layout
    }


def _exact(tensor: Tensor, first: Tensor) -> Tensor:
    """A tensor in double precision; integers as differences to the first client's, which are small where they are not."""
    tensor = tensor.to(first.device)
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    if tensor.dtype == torch.bool or tensor.is_floating_point():
        return tensor.double()
    return (tensor.long() - first.long()).double()


def _middle(tensors: Sequence[Tensor], method: AverageMethod) -> Tensor:
    """Median or trimmed mean, entry by entry; of complex numbers, of real and imaginary parts."""
    values = torch.stack([_exact(tensor, tensors[0]) for tensor in tensors])
    if values.is_complex():
        values = torch.view_as_real(values)
    count = len(values)
    trimmed = (count - 1) // 2 if method == "median" else min(max(1, int(TRIM_FRACTION * count)), (count - 1) // 2)
    middle = values.sort(dim=0).values[trimmed : count - trimmed].mean(dim=0)
    return torch.view_as_complex(middle) if tensors[0].is_complex() else middle


def _rounded(exact: Tensor, like: Tensor) -> Tensor:
    if like.dtype == torch.bool:
        return exact >= 0.5
    if like.is_floating_point() or like.is_complex():
        return exact.to(like.dtype)
    return (like.long() + exact.round().long()).to(like.dtype)
