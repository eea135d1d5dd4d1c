"""Where Frank-Wolfe starts: doubly stochastic maps (C2M3, appendix B.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from c2m3_fl.matching.problem import MatchingProblem

Start = Literal["identity", "barycentre", "sinkhorn"]
STARTS: tuple[Start, ...] = ("identity", "barycentre", "sinkhorn")

_SINKHORN_STEPS = 100


def start_maps(problem: MatchingProblem, start: Start, seed: int) -> list[Tensor]:
    """Soft maps to start from, per group of shape ``(clients, size, size)``, on the CPU.

    Parameters
    ----------
    problem
        The clients.
    start
        ``"identity"``; ``"barycentre"``, all entries equal; or ``"sinkhorn"``, the doubly stochastic matrix that
        Sinkhorn's iteration finds from random positive entries.
    seed
        Of the random entries.

    Raises
    ------
    ValueError
        If there is no such start.
    """
    shapes = [(problem.clients, size, size) for size in problem.group_sizes]
    if start == "identity":
        return [torch.eye(shape[-1], dtype=problem.dtype).repeat(shape[0], 1, 1) for shape in shapes]
    if start == "barycentre":
        return [torch.full(shape, 1.0 / shape[-1], dtype=problem.dtype) for shape in shapes]
    if start == "sinkhorn":
        generator = torch.Generator().manual_seed(seed)
        return [_sinkhorn(torch.rand(shape, generator=generator, dtype=problem.dtype)) for shape in shapes]
    raise ValueError(f"there is no start {start!r}; the names are {', '.join(STARTS)}")


def apply_soft(data: Tensor, maps: Tensor, axis: int) -> Tensor:
    """Map one axis of a block of shape ``(clients, *group sizes, rest)`` by maps ``(clients, size, size)``."""
    rows = data.movedim(axis + 1, 1)
    mapped = torch.bmm(maps.to(data.device), rows.flatten(2)).reshape(rows.shape)
    return mapped.movedim(1, axis + 1)


def _sinkhorn(matrices: Tensor) -> Tensor:
    for _ in range(_SINKHORN_STEPS):
        matrices = matrices / matrices.sum(2, keepdim=True)
        matrices = matrices / matrices.sum(1, keepdim=True)
    return matrices
