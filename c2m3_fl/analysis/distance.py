"""How far networks are from one another in weight space, and what a cycle of pairwise maps does to one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from c2m3_fl.symmetry import Permutations, PermutationSpec, compose


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Iterable[str] | None = None) -> float:
    """Euclidean distance of two networks' weights, summed in float64.

    Parameters
    ----------
    a, b
        State dicts.
    names
        Which tensors to compare, for example a spec's without those it carries; None for all of floating point.

    Raises
    ------
    ValueError
        If a tensor is missing or of another shape.
    """
    squares = [torch.sum((x - y).square()) for x, y in _pairs(a, b, names)]
    return math.sqrt(float(sum(squares)))


def cosine_similarity(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Iterable[str] | None = None) -> float:
    """Cosine of the angle between two networks' weights as vectors (C2M3, Figure 5); `names` as in `distance`.

    Raises
    ------
    ValueError
        If a tensor is missing or of another shape, or all of a network's are zero.
    """
    pairs = list(_pairs(a, b, names))
    product = float(sum(torch.sum(x * y) for x, y in pairs))
    norms = [math.sqrt(float(sum(torch.sum(pair[side].square()) for pair in pairs))) for side in (0, 1)]
    if 0.0 in norms:
        raise ValueError("a network whose weights are all zero has no direction")
    return product / (norms[0] * norms[1])


def cycle(maps: Sequence[Permutations]) -> dict[str, Tensor]:
    """The permutations that result from applying maps one after the other, such as A to B, B to C, C to A."""
    if not maps:
        raise ValueError("a cycle has at least one map")
    return reduce(compose, maps[1:], dict(maps[0]))


def cycle_error(network: Mapping[str, Tensor], maps: Sequence[Permutations], spec: PermutationSpec) -> float:
    """Distance of a network from itself after a cycle of pairwise maps (C2M3, Figure 2b).

    Parameters
    ----------
    network
        The network at which the cycle begins and ends.
    maps
        Pairwise maps in the sense of `PermutationSpec.apply`, in the order in which they are applied.
    spec
        The permutation groups.

    Returns
    -------
    float
        Exactly 0 for maps through one universe.
    """
    return distance(network, spec.apply(network, cycle(maps)))


def _pairs(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Iterable[str] | None
) -> Iterable[tuple[Tensor, Tensor]]:
    chosen = [name for name, tensor in a.items() if tensor.dtype.is_floating_point] if names is None else list(names)
    for name in chosen:
        if name not in a or name not in b:
            raise ValueError(f"tensor {name!r} is not in both networks")
        if a[name].shape != b[name].shape:
            raise ValueError(f"tensor {name!r} has shapes {tuple(a[name].shape)} and {tuple(b[name].shape)}")
        yield a[name].detach().double(), b[name].detach().double()
