"""Averages of state dicts: the weighted mean, and two that a few bad clients cannot move far.

A coordinate-wise median or trimmed mean compares the same entry of every client's tensors. That makes sense in the
universe, where entry by entry the clients' neurons correspond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from c2m3_fl.validation import check_clients

AverageMethod = Literal["mean", "median", "trimmed-mean"]

TRIM_FRACTION = 0.2
"""Share of the clients that the trimmed mean leaves out at each end, entry by entry; at least one of three or more."""


def average(
    state_dicts: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float] | None = None,
    *,
    method: AverageMethod = "mean",
) -> dict[str, Tensor]:
    """Average state dicts tensor by tensor (C2M3, Algorithm 2, line 5, for clients mapped to the universe).

    Parameters
    ----------
    state_dicts
        Equal names, shapes and dtypes, finite.
    weights
        One non-negative weight per state dict; None for equal weights. Only their ratios matter.
    method
        ``"mean"``; ``"median"`` or ``"trimmed-mean"``, entry by entry, for which every positive weight counts the same,
        since who is bad may also lie about its weight (Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018).

    Returns
    -------
    dict of str to Tensor
        New tensors with the names, shapes, dtypes and device of the first state dict's. Sums are made in float64.
        Integers, such as BatchNorm's counters, are averaged and rounded; booleans are the weighted majority.

    Raises
    ------
    ClientError
        Naming the state dict that does not fit the others, or whose weight is unusable.
    ValueError
        If there is no such method.
    """
    if method not in get_args(AverageMethod):
        raise ValueError(f"there is no average {method!r}; choose one of {', '.join(get_args(AverageMethod))}")
    checked = check_clients(state_dicts, weights)
    if method == "mean":
        exact = _mean(state_dicts, checked)
    else:
        counted = [state_dict for state_dict, weight in zip(state_dicts, checked, strict=True) if weight > 0]
        exact = {name: _middle([each[name] for each in counted], method) for name in counted[0]}
    return {name: _rounded(exact[name], tensor) for name, tensor in state_dicts[0].items()}


def _mean(state_dicts: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Weighted mean in float64. One state dict is asked for at a time: the sequence may make them on demand."""
    total = sum(weights)
    sums: dict[str, Tensor] = {}
    for state_dict, weight in zip(state_dicts, weights, strict=True):
        for name, tensor in state_dict.items():
            if name not in sums:
                sums[name] = torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device)
            if weight > 0:
                sums[name].add_(tensor.detach().to(sums[name]), alpha=weight / total)
    return sums


def _middle(tensors: Sequence[Tensor], method: AverageMethod) -> Tensor:
    """Median or trimmed mean, entry by entry."""
    values = torch.stack([tensor.detach().to(tensors[0].device).double() for tensor in tensors])
    count = len(values)
    trimmed = (count - 1) // 2 if method == "median" else min(max(1, int(TRIM_FRACTION * count)), (count - 1) // 2)
    return values.sort(dim=0).values[trimmed : count - trimmed].mean(dim=0)


def _rounded(exact: Tensor, like: Tensor) -> Tensor:
    if like.dtype == torch.bool:
        return exact >= 0.5
    return exact.to(like.dtype) if like.dtype.is_floating_point else exact.round().to(like.dtype)
