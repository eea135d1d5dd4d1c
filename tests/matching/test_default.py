"""The default matcher's parts against oracles: dense matrices, autograd, grids, and the matcher without the part."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from c2m3_fl.matching import (
    BlockFrankWolfe,
    CampMoves,
    CoordinateAscent,
    FrankWolfe,
    Matching,
    MatchingProblem,
    UniverseMatcher,
    default,
)
from c2m3_fl.matching.block_frank_wolfe import SoftClients
from tests.cases import SPECS, build_problem, random_clients
from tests.matching.test_frank_wolfe import dense_objective

WEIGHTS = [0.2, 2.3, 0.9, 0.6]


def soft_clients(name: str, steps: int = 2) -> tuple[MatchingProblem, SoftClients, list[dict[str, Tensor]]]:
    """Clients of unequal weights under soft maps of no particular kind, in float64, and their state dicts."""
    spec = SPECS[name]
    state_dicts = random_clients(spec, 4, seed=3, dtype=torch.float64)
    problem = build_problem(spec, state_dicts, WEIGHTS)
    generator = torch.Generator().manual_seed(5)
    soft = SoftClients(problem)
    soft.start(
        [torch.stack([torch.randperm(n, generator=generator) for _ in range(4)]) for n in problem.group_sizes], 0.3
    )
    with ThreadPoolExecutor(1) as executor:
        for client in range(steps):
            soft.step(client, executor)
    soft.refresh()
    return problem, soft, state_dicts


def dense(problem: MatchingProblem, soft: SoftClients) -> list[dict[str, Tensor]]:
    """The soft maps, per client and group of shape ``(size, size)``; copies."""
    return [
        dict(zip(problem.group_names, (each.clone() for each in soft.cells.views(own)), strict=True))
        for own in soft.maps
    ]


@pytest.mark.parametrize("name", SPECS)
def test_objective_is_that_of_the_maps_it_keeps(name: str) -> None:
    problem, soft, state_dicts = soft_clients(name)
    expected = float(dense_objective(SPECS[name], state_dicts, dense(problem, soft), list(problem.weights)))
    assert soft.objective() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_gradient_is_autograd_s(name: str) -> None:
    problem, soft, state_dicts = soft_clients(name)
    for client, weight in enumerate(problem.weights):
        maps = dense(problem, soft)
        for own in maps[client].values():
            own.requires_grad_()
        torch.autograd.backward(dense_objective(SPECS[name], state_dicts, maps, list(problem.weights)))
        for tier in soft._tiers:
            tier.leave(client)
        total = torch.stack([tier.gradient for tier in soft._tiers]).sum(0)
        for gradient, own in zip(soft.cells.views(total), maps[client].values(), strict=True):
            assert own.grad is not None
            torch.testing.assert_close(2 * weight * gradient, own.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("client", range(4))
def test_step_is_the_best_of_a_grid_towards_the_best_vertex(name: str, client: int) -> None:
    problem, soft, state_dicts = soft_clients(name)
    before = dense(problem, soft)
    for tier in soft._tiers:
        tier.leave(client)
    gradients = soft.cells.views(torch.stack([tier.gradient for tier in soft._tiers]).sum(0))
    vertex = {
        group: torch.eye(len(each), dtype=torch.float64)[linear_sum_assignment(each.numpy(), maximize=True)[1]]
        for group, each in zip(problem.group_names, gradients, strict=True)
    }
    with ThreadPoolExecutor(1) as executor:
        step = soft.step(client, executor)
    soft.refresh()

    def along(alpha: float) -> tuple[list[dict[str, Tensor]], float]:
        maps = [dict(own) for own in before]
        maps[client] = {g: (1 - alpha) * own + alpha * vertex[g] for g, own in before[client].items()}
        return maps, float(dense_objective(SPECS[name], state_dicts, maps, list(problem.weights)))

    maps, reached = along(step)
    for found, own in zip(dense(problem, soft), maps, strict=True):
        for group in problem.group_names:
            torch.testing.assert_close(found[group], own[group])
    assert soft.objective() == pytest.approx(reached, rel=1e-9)
    assert reached >= max(along(alpha)[1] for alpha in np.linspace(0, 1, 21)) - 1e-9 * abs(reached)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("softness", [0.0, 0.5])
def test_block_frank_wolfe_never_falls_with_unequal_weights(name: str, softness: float) -> None:
    problem = build_problem(SPECS[name], random_clients(SPECS[name], 4, seed=1), WEIGHTS)
    found = BlockFrankWolfe().restart(problem, problem.identity(), softness)
    objectives = [iteration.objective for iteration in found.iterations]
    assert objectives[-1] > objectives[0]
    assert all(b >= a - 1e-6 * abs(a) for a, b in itertools.pairwise(objectives))


MAPS = torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.1, 0.4], [0.0, 0.6, 0.4]])  # largest of a row: twice the first column
NEAREST = torch.tensor([0, 2, 1])


def test_rounding_takes_the_best_permutation_where_the_largest_entries_are_none() -> None:
    values = {order: sum(float(MAPS[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(range(3))}
    assert max(values, key=values.__getitem__) == tuple(NEAREST.tolist())
    assert len(set(MAPS.argmax(1).tolist())) < 3
    problem = build_problem(SPECS["mlp"], random_clients(SPECS["mlp"], 2))
    soft = SoftClients(problem)
    soft.start(problem.identity())
    for matrices in soft.cells.views(soft.maps):
        matrices[1] = 0.1 * torch.eye(matrices.shape[-1])
        matrices[1, :3, :3] = MAPS
    with ThreadPoolExecutor(1) as executor:
        for orders in soft.rounded(executor):
            assert torch.equal(orders[0], torch.arange(orders.shape[1]))
            assert torch.equal(orders[1], torch.cat([NEAREST, torch.arange(3, orders.shape[1])]))


def test_frank_wolfe_rounds_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = build_problem(SPECS["mlp"], random_clients(SPECS["mlp"], 2))
    soft = [torch.eye(size).repeat(2, 1, 1) for size in problem.group_sizes]
    soft[0][1] *= 0.1
    soft[0][1, :3, :3] = MAPS
    monkeypatch.setattr(FrankWolfe, "ascend", lambda *_: (soft, ()))
    assert torch.equal(FrankWolfe().match(problem).permutations[0][1, :3], NEAREST)


def values(matcher: UniverseMatcher, cases: Sequence[MatchingProblem]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([case.objective(matcher.match(case).permutations) for case in cases])


SOME = [build_problem(SPECS["convolutions"], random_clients(SPECS["convolutions"], 6, seed)) for seed in range(5)]


def test_restarts_gain_and_never_lose() -> None:
    none, two, four = (values(UniverseMatcher(effort=effort), SOME) for effort in (0, 2, 4))
    assert (four > 1.02 * none).all()
    assert two.sum() > 1.02 * none.sum()
    assert four.sum() > two.sum()


def test_the_second_start_gains_and_never_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    both = values(UniverseMatcher(), SOME)
    monkeypatch.setattr(default, "_SMALL_SIZE", 0)
    one = values(UniverseMatcher(), SOME)
    assert (both > 1.005 * one).sum() >= 2
    assert (both > 0.999 * one).all()


def test_one_move_joins_two_camps() -> None:
    spec = SPECS["mlp"]
    (base,) = random_clients(spec, 1)
    moved = spec.apply(base, spec.random(torch.Generator().manual_seed(1)))
    problem = build_problem(spec, [base, moved, base, moved, base], [1.0, 2.0, 1.0, 0.5, 0.5])
    best = sum(float(tensor.square().sum()) for tensor in base.values()) * (
        25.0 - 6.5
    )  # the square of the sum of weights, less their squares
    found = CampMoves(finish=CoordinateAscent(max_sweeps=0)).improve(problem, problem.identity())
    assert problem.objective(found.permutations) == pytest.approx(best, rel=1e-6)
    assert found.objective == pytest.approx(best, rel=1e-6)
    assert [iteration.phase for iteration in found.iterations] == ["camp-moves"]


def test_the_default_moves_camps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Matching, Matching]] = []
    improve = CampMoves.improve

    def spy(self: CampMoves, problem: MatchingProblem, permutations: list[Tensor], objective: float | None) -> Matching:
        found = improve(self, problem, permutations, objective)
        seen.append((Matching(permutations, ()), found))
        return replace(found, permutations=[orders.flip(0) for orders in found.permutations])

    monkeypatch.setattr(CampMoves, "improve", spy)
    problem = build_problem(SPECS["mlp"], random_clients(SPECS["mlp"], 4))
    matching = UniverseMatcher().match(problem)
    assert len(seen) == 1
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(matching.permutations, seen[0][1].permutations, strict=True))


@pytest.mark.parametrize("name", ["mlp", "convolutions", "attention"])
def test_weights_enter(name: str) -> None:
    gained = 0
    for seed in range(4):
        state_dicts = random_clients(SPECS[name], 4, seed)
        equal, weighted = (build_problem(SPECS[name], state_dicts, w) for w in (None, [40.0, 30.0, 1.0, 1.0]))
        blind, seeing = (UniverseMatcher().match(each).permutations for each in (equal, weighted))
        gained += weighted.objective(seeing) > 1.001 * weighted.objective(blind)
    assert gained >= 3


@pytest.mark.parametrize("name", SPECS)
def test_a_matching_tells_its_objective(name: str) -> None:
    problem = build_problem(SPECS[name], random_clients(SPECS[name], 3), [1.0, 2.0, 0.5])
    matching = UniverseMatcher().match(problem)
    assert matching.objective == pytest.approx(problem.objective(matching.permutations), rel=1e-12)
    assert problem.identity_objective == pytest.approx(problem.objective(problem.identity()), rel=1e-12)
