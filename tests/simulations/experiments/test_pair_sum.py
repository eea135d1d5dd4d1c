"""The pair-sum baseline is the same algorithm as the package's Frank-Wolfe, done the long way."""

from __future__ import annotations

import pytest
import torch

from c2m3_fl.matching import FrankWolfe, MatchingProblem
from simulations.experiments.paper.pair_sum import PairSumFrankWolfe, pair_gradients, pair_objective
from tests.cases import SPECS


def problem(name: str, clients: int = 3) -> MatchingProblem:
    generator = torch.Generator().manual_seed(5)
    spec = SPECS[name]
    networks = [
        {
            key: torch.randn([axis.size for axis in axes], generator=generator, dtype=torch.float64)
            for key, axes in spec.tensors.items()
        }
        for _ in range(clients)
    ]
    return MatchingProblem.build(networks, spec, [1.0] * clients, torch.device("cpu"))


def soft_maps(each: MatchingProblem) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.rand(each.clients, size, size, generator=generator, dtype=torch.float64) for size in each.group_sizes]


@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_the_objective_at_the_identity_is_the_packages(name: str) -> None:
    each = problem(name)
    maps = [torch.eye(size, dtype=torch.float64).repeat(each.clients, 1, 1) for size in each.group_sizes]
    assert pair_objective(each, maps) == pytest.approx(each.objective(each.identity()))


@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_the_gradient_is_that_of_the_objective(name: str) -> None:
    each, step = problem(name), 1e-6
    maps = soft_maps(each)
    gradients = pair_gradients(each, maps)
    for group, client, row, column in ((0, 0, 1, 2), (1, 2, 3, 0), (0, 1, 0, 0)):
        moved = [values.clone() for values in maps]
        moved[group][client, row, column] += step
        difference = (pair_objective(each, moved) - pair_objective(each, maps)) / step
        assert 2 * float(gradients[group][client, row, column]) == pytest.approx(difference, rel=1e-4)


def test_it_climbs_as_the_packages_frank_wolfe_does() -> None:
    each = problem("mlp")
    long_way, ours = PairSumFrankWolfe(4).match(each), FrankWolfe(max_iterations=4).match(each)
    found = [iteration.objective for iteration in long_way.iterations]
    # Their first steps are along the same vertices; the line searches differ by the numerical one's tolerance.
    assert found[:2] == pytest.approx([i.objective for i in ours.iterations][:2], rel=1e-3)
    assert found == sorted(found)
