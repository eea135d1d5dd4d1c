"""Frank-Wolfe against a dense pair-sum implementation of the paper's formulas."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from c2m3_fl.matching import BlockFrankWolfe, FrankWolfe, MatchingProblem
from c2m3_fl.matching.assignment import assign
from c2m3_fl.matching.frank_wolfe import SoftBlock, gradients
from c2m3_fl.matching.line_search import maximise_on_unit_interval
from c2m3_fl.symmetry import Axis, PermutationSpec
from tests.cases import SPECS, build_problem, random_clients, related_clients


def dense_axis(axis: Axis, maps: dict[str, Tensor]) -> Tensor:
    """The (size, size) matrix by which soft maps act on an axis: blocks of Kronecker products."""
    blocks = []
    for segment in axis.segments:
        matrix = torch.ones(1, 1, dtype=torch.float64)
        for factor in segment.factors:
            own = maps[factor.group] if factor.group is not None else torch.eye(factor.size, dtype=torch.float64)
            matrix = torch.kron(matrix, own)
        blocks.append(matrix)
    whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return whole


def dense_image(spec: PermutationSpec, state_dict: dict[str, Tensor], maps: dict[str, Tensor]) -> dict[str, Tensor]:
    image = {}
    for name, axes in spec.tensors.items():
        if name in spec.carried:
            continue
        tensor: Tensor = state_dict[name].double()
        for dim, axis in enumerate(axes):
            tensor = torch.tensordot(dense_axis(axis, maps), tensor, dims=([1], [dim])).movedim(0, dim)
        image[name] = tensor
    return image


def dense_objective(
    spec: PermutationSpec, clients: list[dict[str, Tensor]], maps: list[dict[str, Tensor]], weights: list[float]
) -> Tensor:
    images = [dense_image(spec, client, own) for client, own in zip(clients, maps, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for p, left in enumerate(images):
        for q, right in enumerate(images):
            if p != q:
                total = total + weights[p] * weights[q] * sum((left[k] * right[k]).sum() for k in left)
    return total


def walk(problem: MatchingProblem, steps: list[float], seed: int) -> tuple[list[SoftBlock], list[dict[str, Tensor]]]:
    """Soft blocks after a few steps to random vertices, and the same soft maps as dense matrices per client."""
    generator = torch.Generator().manual_seed(seed)
    states = [SoftBlock(block, problem.weights) for block in problem.blocks]
    maps = [
        {
            name: torch.eye(size, dtype=torch.float64)
            for name, size in zip(problem.group_names, problem.group_sizes, strict=True)
        }
        for _ in range(problem.clients)
    ]
    for step in steps:
        vertices = [
            torch.stack([torch.randperm(size, generator=generator) for _ in range(problem.clients)])
            for size in problem.group_sizes
        ]
        for state in states:
            state.search(vertices)
            state.move(vertices, step)
        for client, own in enumerate(maps):
            for group, name in enumerate(problem.group_names):
                vertex = torch.eye(problem.group_sizes[group], dtype=torch.float64)[vertices[group][client]]
                own[name] = (1 - step) * own[name] + step * vertex
    return states, maps


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("clients", [2, 3])
def test_gradient_equals_that_of_the_pair_sum(name: str, clients: int) -> None:
    spec = SPECS[name]
    weights = [1.0, 0.5, 1.5][:clients] if clients == 3 else [0.5, 1.5]
    state_dicts = random_clients(spec, clients, seed=3, dtype=torch.float64)
    problem = build_problem(spec, state_dicts, weights)
    states, maps = walk(problem, [0.3, 0.6], seed=1)
    leaves = [{group: own.clone().requires_grad_() for group, own in maps_of.items()} for maps_of in maps]
    torch.autograd.backward(dense_objective(spec, state_dicts, leaves, weights))
    for group, gradient in zip(problem.group_names, gradients(problem, states), strict=True):
        for client in range(clients):
            expected = leaves[client][group].grad
            assert expected is not None
            torch.testing.assert_close(2 * weights[client] * gradient[client], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_line_search_polynomial_is_the_objective_along_the_step(name: str) -> None:
    spec, weights = SPECS[name], [0.4, 1.2, 1.4]
    state_dicts = random_clients(spec, 3, seed=4, dtype=torch.float64)
    problem = build_problem(spec, state_dicts, weights)
    for step in (0.0, 0.25, 0.7, 1.0):
        states, _ = walk(problem, [0.4], seed=2)
        generator = torch.Generator().manual_seed(9)
        vertices = [
            torch.stack([torch.randperm(s, generator=generator) for _ in range(3)]) for s in problem.group_sizes
        ]
        polynomial = sum((state.search(vertices) for state in states), Polynomial([problem.constant]))
        _, maps = walk(problem, [0.4], seed=2)
        for client, own in enumerate(maps):
            for group, group_name in enumerate(problem.group_names):
                vertex = torch.eye(problem.group_sizes[group], dtype=torch.float64)[vertices[group][client]]
                own[group_name] = (1 - step) * own[group_name] + step * vertex
        expected = float(dense_objective(spec, state_dicts, maps, weights))
        assert float(polynomial(step)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("clients", [2, 3, 5])
def test_objective_never_decreases(name: str, clients: int) -> None:
    problem = build_problem(SPECS[name], random_clients(SPECS[name], clients, seed=clients))
    objectives = [iteration.objective for iteration in FrankWolfe(max_iterations=60).match(problem).iterations]
    slack = 1e-6 * max(map(abs, objectives))
    assert len(objectives) > 2
    assert all(after >= before - slack for before, after in itertools.pairwise(objectives))


def test_last_soft_objective_is_the_hard_one_where_the_maps_end_hard() -> None:
    spec = SPECS["mlp"]
    problem = build_problem(spec, related_clients(spec, 3))
    matching = FrankWolfe().match(problem)
    assert matching.iterations[-1].objective == pytest.approx(problem.objective(matching.permutations), rel=1e-6)


def test_rounding_is_the_assignment_nearest_to_the_soft_map() -> None:
    problem = build_problem(SPECS["mlp"], related_clients(SPECS["mlp"], 2, noise=0.5, seed=8))
    with ThreadPoolExecutor(1) as executor:
        soft, _ = FrankWolfe(max_iterations=3).ascend(problem, executor)
    hard = FrankWolfe(max_iterations=3).match(problem).permutations
    assert any((matrices != matrices.round()).any() for matrices in soft)  # else there is nothing to round
    for matrices, orders in zip(soft, hard, strict=True):
        torch.testing.assert_close(matrices.sum(1), torch.ones(matrices.shape[:2]))
        torch.testing.assert_close(matrices.sum(2), torch.ones(matrices.shape[:2]))
        for matrix, order in zip(matrices, orders, strict=True):
            assert torch.equal(order, assign(matrix))


@pytest.mark.parametrize("seed", range(20))
def test_step_maximises_the_polynomial(seed: int) -> None:
    polynomial = Polynomial(np.random.default_rng(seed).normal(size=5))
    step = maximise_on_unit_interval(polynomial)
    assert polynomial(step) >= polynomial(np.linspace(0, 1, 1001)).max() - 1e-12


def test_a_flat_objective_makes_no_step() -> None:
    assert maximise_on_unit_interval(Polynomial([2.0, 0.0, 0.0])) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_two_copies_keep_changing_places_unless_they_move_in_turn(seed: int) -> None:
    # All at once, each goes to where the other was: both end in the same soft maps, which no permutation is near to.
    spec = PermutationSpec.from_axes(
        {"a": 30, "b": 30},
        {"in": ("a", 20), "mid": ("b", "a"), "out": (5, "b")},
    )
    problem = build_problem(spec, related_clients(spec, 2, seed=seed))
    optimum = sum(float(block.data.double().square().sum()) for block in problem.blocks)
    at_once, in_turn = FrankWolfe(max_iterations=100).match(problem), BlockFrankWolfe().match(problem)
    assert at_once.iterations[-1].objective < 0.8 * optimum
    assert problem.objective(in_turn.permutations) == pytest.approx(optimum, rel=1e-5)
