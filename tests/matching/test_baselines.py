"""The algorithms that the default is compared with."""

from __future__ import annotations

import itertools

import pytest
import torch

from c2m3_fl.matching import (
    BlockFrankWolfe,
    CoordinateAscent,
    FrankWolfe,
    GitReBasin,
    Matcher,
    MergeMany,
    PairwiseFrankWolfe,
    ToReference,
)
from tests.cases import SPECS, build_problem, random_clients, related_clients

TO_REFERENCE = [GitReBasin, PairwiseFrankWolfe, ToReference]


@pytest.mark.parametrize("matcher", TO_REFERENCE)
def test_the_reference_stays_where_it_is(matcher: type[GitReBasin | PairwiseFrankWolfe | ToReference]) -> None:
    problem = build_problem(SPECS["mlp"], random_clients(SPECS["mlp"], 4))
    for reference in range(4):
        for orders, size in zip(
            matcher(reference=reference).match(problem).permutations, problem.group_sizes, strict=True
        ):
            assert torch.equal(orders[reference], torch.arange(size))


@pytest.mark.parametrize("matcher", TO_REFERENCE)
def test_each_client_is_matched_without_regard_to_the_others(
    matcher: type[GitReBasin | PairwiseFrankWolfe | ToReference],
) -> None:
    spec = SPECS["convolutions"]
    state_dicts = random_clients(spec, 3)
    pair = matcher().match(build_problem(spec, state_dicts[:2])).permutations
    three = matcher().match(build_problem(spec, state_dicts)).permutations
    for of_two, of_three in zip(pair, three, strict=True):
        assert torch.equal(of_two, of_three[:2])


@pytest.mark.parametrize("matcher", TO_REFERENCE)
def test_a_reference_that_does_not_exist_is_an_error(
    matcher: type[GitReBasin | PairwiseFrankWolfe | ToReference],
) -> None:
    problem = build_problem(SPECS["mlp"], random_clients(SPECS["mlp"], 2))
    with pytest.raises(ValueError, match="reference 2 is none of the 2 clients"):
        matcher(reference=2).match(problem)


@pytest.mark.parametrize("spec", ["mlp", "convolutions", "attention", "concatenation"])
@pytest.mark.parametrize("matcher", [GitReBasin(), PairwiseFrankWolfe(), ToReference(), MergeMany(), BlockFrankWolfe()])
def test_planted_permutations_of_two_clients_are_found(matcher: Matcher, spec: str) -> None:
    problem = build_problem(SPECS[spec], related_clients(SPECS[spec], 2))
    optimum = sum(float(block.data.double().square().sum()) for block in problem.blocks) + problem.constant
    assert problem.objective(matcher.match(problem).permutations) >= 0.5 * optimum


@pytest.mark.parametrize("matcher", [GitReBasin, MergeMany])
def test_the_random_order_follows_the_seed(matcher: type[GitReBasin | MergeMany]) -> None:
    problem = build_problem(SPECS["convolutions"], random_clients(SPECS["convolutions"], 4))
    results = [matcher(seed=seed).match(problem).permutations for seed in (0, 1, 2, 3, 0)]
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[-1], strict=True))
    assert any(not torch.equal(a, b) for other in results[1:4] for a, b in zip(results[0], other, strict=True))


def test_merge_many_ends_where_coordinate_ascent_has_nothing_to_add() -> None:
    problem = build_problem(SPECS["attention"], random_clients(SPECS["attention"], 4))
    permutations = MergeMany().match(problem).permutations
    again = CoordinateAscent().improve(problem, permutations).permutations
    assert all(torch.equal(a, b) for a, b in zip(permutations, again, strict=True))


@pytest.mark.parametrize("start", ["barycentre", "sinkhorn"])
@pytest.mark.parametrize("clients", [2, 3])
def test_frank_wolfe_from_soft_starts(start: str, clients: int) -> None:
    problem = build_problem(SPECS["convolutions"], related_clients(SPECS["convolutions"], clients, noise=0.1))
    matching = FrankWolfe(start=start).match(problem)  # type: ignore[arg-type]
    objectives = [iteration.objective for iteration in matching.iterations]
    slack = 1e-5 * max(map(abs, objectives))
    assert all(after >= before - slack for before, after in itertools.pairwise(objectives))
    assert problem.objective(matching.permutations) > problem.objective(problem.identity())
