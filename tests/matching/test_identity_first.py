"""The identity first: a proof that it is optimal spares the matching, and is never wrong."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from c2m3_fl.matching import CoordinateAscent, IdentityFirst, Matching, MatchingProblem
from c2m3_fl.matching.identity_first import identity_is_optimal
from tests.cases import SPECS, build_problem, random_clients, related_clients

SPEC = SPECS["mlp"]


def near(state_dict: dict[str, Tensor], seed: int, noise: float = 0.01) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: t + noise * torch.randn(t.shape, generator=generator) for name, t in state_dict.items()}


SHARED = [near(random_clients(SPEC, 1)[0], seed) for seed in range(4)]
OWN = random_clients(SPEC, 4)


class Forbidden:
    def match(self, problem: MatchingProblem) -> Matching:
        raise AssertionError("the matcher was called although the identity is optimal")


@pytest.mark.parametrize("weights", [[1.0] * 4, [1.0, 2.0, 30.0, 4.0]])
def test_clients_near_one_network_need_no_matcher(weights: list[float]) -> None:
    problem = build_problem(SPEC, SHARED, weights)
    assert identity_is_optimal(problem)
    assert all(
        torch.equal(found, kept)
        for found, kept in zip(IdentityFirst(Forbidden()).match(problem).permutations, problem.identity(), strict=True)
    )
    ascended = CoordinateAscent().match(problem).permutations
    assert all(torch.equal(found, kept) for found, kept in zip(ascended, problem.identity(), strict=True))


@pytest.mark.parametrize("name", ["mlp", "convolutions", "concatenation"])
def test_a_proof_means_that_no_single_assignment_gains(name: str) -> None:
    spec = SPECS[name]
    proved = 0
    for seed in range(12):
        (base,) = related_clients(spec, 1, seed=seed)
        noise = 0.2 * (1 + seed)
        clients = [near(base, 10 * seed + i, noise) for i in range(3)]
        clients = [{k: v if base[k].is_floating_point() else base[k] for k, v in c.items()} for c in clients]
        problem = build_problem(spec, clients)
        if not identity_is_optimal(problem):
            continue
        proved += 1
        best = problem.objective(problem.identity())
        for client, group in itertools.product(range(3), range(len(problem.group_sizes))):
            size = problem.group_sizes[group]
            for i, j in itertools.combinations(range(size), 2):
                permutations = problem.identity()
                permutations[group][client, [i, j]] = torch.tensor([j, i])
                assert problem.objective(permutations) <= best * (1 + 1e-5)
    assert proved > 0


def test_there_is_no_proof_for_unrelated_clients_or_where_one_does_not_hold() -> None:
    assert not identity_is_optimal(build_problem(SPEC, OWN))
    twice = SPECS["recurrent"]
    (base,) = related_clients(twice, 1)
    assert not identity_is_optimal(build_problem(twice, [base, base]))


def test_dead_neurons_do_not_hinder_the_proof() -> None:
    dead = [{k: v.clone() for k, v in client.items()} for client in SHARED]
    for client in dead:
        client["in.weight"][:5] = 0
        client["in.bias"][:5] = 0
        client["mid.weight"][:, :5] = 0
    assert identity_is_optimal(build_problem(SPEC, dead))
