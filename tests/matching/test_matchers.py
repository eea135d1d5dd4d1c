"""What every matcher must do: one table of matchers, one of specs."""

from __future__ import annotations

import itertools

import pytest
import torch

from c2m3_fl.matching import (
    MATCHERS,
    CoordinateAscent,
    Matching,
    MatchingProblem,
    MergeMany,
    UniverseMatcher,
    resolve_matcher,
)
from c2m3_fl.matching.assignment import assign
from c2m3_fl.symmetry import PermutationSpec
from tests.cases import SPECS, build_problem, random_clients, related_clients


def solve(name: str, problem: MatchingProblem) -> Matching:
    return MATCHERS[name]().match(problem)


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("clients", [2, 5])
def test_result_is_permutations_no_worse_than_none(matcher: str, spec: str, clients: int) -> None:
    problem = build_problem(SPECS[spec], related_clients(SPECS[spec], clients, noise=0.3))
    matching = solve(matcher, problem)
    for orders, size in zip(matching.permutations, problem.group_sizes, strict=True):
        assert orders.dtype == torch.long
        assert torch.equal(orders.sort(dim=1).values, torch.arange(size).repeat(clients, 1))
    start, slack = problem.objective(problem.identity()), 1e-4 * abs(problem.objective(matching.permutations))
    assert problem.objective(matching.permutations) >= start - slack


@pytest.mark.parametrize("matcher", MATCHERS)
def test_two_runs_give_the_same_bits(matcher: str) -> None:
    spec = SPECS["attention"]
    runs = [solve(matcher, build_problem(spec, random_clients(spec, 4))) for _ in range(2)]
    assert runs[0].iterations == runs[1].iterations
    assert all(torch.equal(a, b) for a, b in zip(runs[0].permutations, runs[1].permutations, strict=True))


@pytest.mark.parametrize("spec", SPECS)
def test_coordinate_ascent_never_decreases_the_hard_objective(spec: str) -> None:
    problem = build_problem(SPECS[spec], random_clients(SPECS[spec], 4))
    matching = CoordinateAscent().match(problem)
    objectives = [iteration.objective for iteration in matching.iterations]
    slack = 1e-6 * max(map(abs, objectives))
    assert objectives[0] == pytest.approx(problem.objective(problem.identity()), rel=1e-5, abs=1e-4)
    assert all(after >= before - slack for before, after in itertools.pairwise(objectives))
    assert objectives[-1] == pytest.approx(problem.objective(matching.permutations), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("clients", [2, 3, 6])
def test_on_small_networks_the_default_is_never_below_merge_many(spec: str, clients: int) -> None:
    for seed in range(3):
        problem = build_problem(SPECS[spec], random_clients(SPECS[spec], clients, seed))
        merged = problem.objective(MergeMany().match(problem).permutations)
        assert problem.objective(UniverseMatcher().match(problem).permutations) >= merged - 1e-6 * abs(merged)


@pytest.mark.parametrize("spec", ["mlp", "convolutions", "attention", "concatenation"])
def test_coordinate_ascent_ends_where_no_single_assignment_gains(spec: str) -> None:
    problem = build_problem(SPECS[spec], random_clients(SPECS[spec], 3))
    permutations = CoordinateAscent().match(problem).permutations
    best = problem.objective(permutations)
    for group, size in enumerate(problem.group_sizes):
        for client in range(problem.clients):
            for first in range(size):  # exchanges generate every permutation; none of them may gain
                for second in range(first):
                    changed = [orders.clone() for orders in permutations]
                    changed[group][client, [first, second]] = changed[group][client, [second, first]]
                    assert problem.objective(changed) <= best + 1e-4


def test_coordinate_ascent_that_ends_early_treats_small_layers_like_large_ones() -> None:
    spec = PermutationSpec.from_axes({"a": 6, "b": 12}, {"large.weight": ("a", 5), "small.weight": ("b", 5)})
    clients = [
        {"large.weight": large["large.weight"], "small.weight": small["small.weight"]}
        for large, small in zip(related_clients(spec, 8), random_clients(spec, 8), strict=True)
    ]
    shrunk = [{**client, "small.weight": client["small.weight"] * 2.0**-10} for client in clients]
    as_they_are, small = (
        CoordinateAscent(least_gain=0.01).match(build_problem(spec, each)) for each in (clients, shrunk)
    )
    assert len(small.iterations) > 3
    assert all(torch.equal(a, b) for a, b in zip(as_they_are.permutations, small.permutations, strict=True))


def test_coordinate_ascent_that_ends_early_takes_fewer_sweeps() -> None:
    spec = SPECS["mlp"]
    problem = build_problem(spec, random_clients(spec, 8))
    exact, early = CoordinateAscent().match(problem), CoordinateAscent(least_gain=0.02).match(problem)
    assert 1 < len(early.iterations) < len(exact.iterations)
    for a, b in zip(early.iterations, exact.iterations, strict=False):
        assert a.objective == pytest.approx(b.objective, rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
@pytest.mark.parametrize("seed", range(3))
def test_assignment_beats_random_permutations_and_keeps_certain_ones(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gains = torch.randn(size, size, generator=generator)
    order = assign(gains)
    value = gains[torch.arange(size), order].sum()
    for _ in range(50):
        other = torch.randperm(size, generator=generator)
        assert gains[torch.arange(size), other].sum() <= value + 1e-5
    planted = torch.randperm(size, generator=generator)
    assert torch.equal(assign(torch.eye(size)[planted]), planted)


def test_assignment_refuses_what_is_not_finite() -> None:
    gains = torch.eye(3)
    gains[1, 1] = torch.nan
    with pytest.raises(ValueError, match="invalid numeric"):
        assign(gains)


def test_unknown_matchers_are_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'hungarian'.*frank-wolfe"):
        resolve_matcher("hungarian")
    with pytest.raises(ValueError, match="no method match"):
        resolve_matcher(3)  # type: ignore[arg-type]
