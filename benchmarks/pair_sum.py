"""Algorithm 1 of C2M3 as the paper writes it: sums over pairs of models, products with whole permutation matrices.

This is the yardstick that the library's matchers are timed against, written for clarity and without the library's means.
The line search is the usual bounded one on the objective, itself a sum over pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, minimize_scalar
from torch import Tensor

from c2m3_fl.symmetry import PermutationSpec

_SEARCH = {"xatol": 1e-3, "maxiter": 20}
_PATIENCE = 5

Maps = list[dict[str, Tensor]]
"""Per model and group, the matrix that maps the model's neurons to the universe."""


@dataclass(frozen=True)
class PairSumResult:
    """Rounded permutations per model and group, and the soft objective (over p < q) after each iteration."""

    permutations: list[dict[str, Tensor]]
    objectives: list[float]


def frank_wolfe(
    models: Sequence[Mapping[str, Tensor]],
    spec: PermutationSpec,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
) -> PairSumResult:
    """Match n models.

    Parameters
    ----------
    models
        Their tensors.
    spec
        Permutation groups; each axis of a tensor is fixed or one whole group.
    max_iterations
        Upper bound on the number of iterations.
    tolerance
        Stop after five gains in a row below it.

    Raises
    ------
    ValueError
        If an axis of the spec is neither fixed nor one whole group.
    """
    groups = _axes(spec)
    maps: Maps = [{group: torch.eye(size) for group, size in spec.groups.items()} for _ in models]
    objectives = [_objective(models, groups, maps)]
    small = 0
    while len(objectives) <= max_iterations and small < _PATIENCE:
        gradient = _gradient(models, groups, maps, spec)
        vertices = [{group: _vertex(matrix) for group, matrix in own.items()} for own in gradient]
        step = _line_search(models, groups, maps, vertices)
        maps = _mixed(maps, vertices, step)
        objectives.append(_objective(models, groups, maps))
        small = small + 1 if objectives[-1] - objectives[-2] < tolerance else 0
    rounded = [{group: _vertex(matrix).argmax(1) for group, matrix in own.items()} for own in maps]
    return PairSumResult(rounded, objectives)


def _axes(spec: PermutationSpec) -> dict[str, list[str | None]]:
    """Per matched tensor, the group of each axis."""
    result: dict[str, list[str | None]] = {}
    for name in spec.tensors:
        if name in spec.carried:
            continue
        for axis in spec.tensors[name]:
            factors = axis.segments[0].factors
            if len(axis.segments) > 1 or (axis.groups and len(factors) > 1):
                raise ValueError(f"an axis of {name!r} is neither fixed nor one whole group")
        result[name] = [axis.segments[0].factors[0].group for axis in spec.tensors[name]]
    return result


def _along(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    mapped: Tensor = torch.tensordot(matrix, tensor, dims=([1], [axis]))
    return mapped.movedim(0, axis)


def _rows(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _mapped(tensor: Tensor, groups: Sequence[str | None], maps: Mapping[str, Tensor], leave_out: int = -1) -> Tensor:
    for axis, group in enumerate(groups):
        if group is not None and axis != leave_out:
            tensor = _along(tensor, maps[group], axis)
    return tensor


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return combinations(range(count), 2)


def _objective(models: Sequence[Mapping[str, Tensor]], groups: Mapping[str, list[str | None]], maps: Maps) -> float:
    total = 0.0
    for p, q in _pairs(len(models)):
        for name, axes in groups.items():
            left, right = _mapped(models[p][name], axes, maps[p]), _mapped(models[q][name], axes, maps[q])
            total += float((left * right).sum())
    return total


def _gradient(
    models: Sequence[Mapping[str, Tensor]], groups: Mapping[str, list[str | None]], maps: Maps, spec: PermutationSpec
) -> Maps:
    gradient: Maps = [{group: torch.zeros(size, size) for group, size in spec.groups.items()} for _ in models]
    for pair in _pairs(len(models)):
        for p, q in (pair, pair[::-1]):
            for name, axes in groups.items():
                other = _mapped(models[q][name], axes, maps[q])
                for axis, group in enumerate(axes):
                    if group is not None:
                        own = _mapped(models[p][name], axes, maps[p], leave_out=axis)
                        gradient[p][group] += _rows(other, axis) @ _rows(own, axis).T
    return gradient


def _vertex(matrix: Tensor) -> Tensor:
    rows, columns = linear_sum_assignment(matrix.numpy(), maximize=True)
    vertex = torch.zeros_like(matrix)
    vertex[torch.from_numpy(rows), torch.from_numpy(columns)] = 1.0
    return vertex


def _mixed(maps: Maps, vertices: Maps, step: float) -> Maps:
    return [
        {group: (1.0 - step) * own[group] + step * vertex[group] for group in own}
        for own, vertex in zip(maps, vertices, strict=True)
    ]


def _line_search(
    models: Sequence[Mapping[str, Tensor]], groups: Mapping[str, list[str | None]], maps: Maps, vertices: Maps
) -> float:
    found = minimize_scalar(
        lambda step: -_objective(models, groups, _mixed(maps, vertices, float(step))),
        bounds=(0.0, 1.0),
        method="bounded",
        options=_SEARCH,
    )
    return float(np.clip(found.x, 0.0, 1.0))
