"""The weighted average of state dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from c2m3_fl.validation import check_clients


def average(state_dicts: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Average state dicts tensor by tensor (C2M3, Algorithm 2, line 5, for clients mapped to the universe).

    Parameters
    ----------
    state_dicts
        Equal names, shapes and dtypes, finite.
    weights
        One non-negative weight per state dict; None for equal weights. Only their ratios matter.

    Returns
    -------
    dict of str to Tensor
        New tensors with the names, shapes, dtypes and device of the first state dict's. Sums are made in float64.
        Integers, such as BatchNorm's counters, are averaged and rounded; booleans are the weighted majority.

    Raises
    ------
    ClientError
        Naming the state dict that does not fit the others, or whose weight is unusable.
    """
    checked = check_clients(state_dicts, weights)
    total = sum(checked)
    merged: dict[str, Tensor] = {}
    for name, first in state_dicts[0].items():
        accumulator = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
        for state_dict, weight in zip(state_dicts, checked, strict=True):
            if weight > 0:
                accumulator.add_(state_dict[name].detach().to(accumulator), alpha=weight / total)
        if first.dtype == torch.bool:
            merged[name] = accumulator >= 0.5
        elif first.dtype.is_floating_point:
            merged[name] = accumulator.to(first.dtype)
        else:
            merged[name] = accumulator.round().to(first.dtype)
    return merged
