"""Gradients multiplied in bfloat16: faster, and no worse in the end. Emulated where the device has no instructions."""

from __future__ import annotations

import itertools

import pytest
import torch

from c2m3_fl import align
from c2m3_fl.matching import CoordinateAscent, MatchingProblem, UniverseMatcher, problem
from tests.cases import SPECS, build_problem, random_clients, related_clients


@pytest.fixture
def coarse_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of any size, on any machine, are multiplied in bfloat16 by those who may."""
    monkeypatch.setattr(problem, "coarse_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(problem, "_COARSE_SIZE", 1)


def exact_gains(found: MatchingProblem, permutations: list[torch.Tensor]) -> float:
    again = CoordinateAscent().improve(found, permutations)
    return again.iterations[-1].objective - again.iterations[0].objective


@pytest.mark.usefixtures("coarse_everywhere")
@pytest.mark.parametrize("clients", [2, 3, 4, 7])
@pytest.mark.parametrize("spec", SPECS)
def test_planted_permutations_are_recovered(spec: str, clients: int) -> None:
    state_dicts = related_clients(SPECS[spec], clients, noise=0.0, seed=clients)
    mapped = align(state_dicts, SPECS[spec]).apply(state_dicts)
    for other in mapped[1:]:
        for name, tensor in mapped[0].items():
            assert torch.equal(tensor, other[name]), name


@pytest.mark.usefixtures("coarse_everywhere")
@pytest.mark.parametrize("spec", SPECS)
def test_coordinate_ascent_climbs_to_where_full_precision_finds_no_move(spec: str) -> None:
    case = build_problem(SPECS[spec], random_clients(SPECS[spec], 4))
    matching = CoordinateAscent(coarse=True).match(case)
    objectives = [iteration.objective for iteration in matching.iterations]
    slack = 1e-6 * max(map(abs, objectives))
    assert all(after >= before - slack for before, after in itertools.pairwise(objectives))
    assert exact_gains(case, matching.permutations) == pytest.approx(0.0, abs=slack)


@pytest.mark.parametrize("spec", SPECS)
def test_the_default_is_as_good_as_in_full_precision(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [build_problem(SPECS[spec], random_clients(SPECS[spec], 5, seed)) for seed in range(4)]
    exact = [case.objective(UniverseMatcher().match(case).permutations) for case in cases]
    monkeypatch.setattr(problem, "coarse_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(problem, "_COARSE_SIZE", 1)
    coarse = [case.objective(UniverseMatcher().match(case).permutations) for case in cases]
    assert sum(coarse) == pytest.approx(sum(exact), rel=0.02)


def test_only_large_groups_are_multiplied_coarsely_and_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = build_problem(SPECS["mlp"], random_clients(SPECS["mlp"], 2))
    assert case.product_dtypes(coarse=True) == [torch.float32] * len(case.group_sizes)
    monkeypatch.setattr(problem, "_COARSE_SIZE", max(case.group_sizes))
    monkeypatch.setattr(problem, "coarse_dtype", lambda _: torch.bfloat16)
    expected = [torch.bfloat16 if size == max(case.group_sizes) else torch.float32 for size in case.group_sizes]
    assert case.product_dtypes(coarse=True) == expected
    assert case.product_dtypes(coarse=False) == [torch.float32] * len(case.group_sizes)
    monkeypatch.setattr(problem, "coarse_dtype", lambda _: None)
    assert case.product_dtypes(coarse=True) == [torch.float32] * len(case.group_sizes)
