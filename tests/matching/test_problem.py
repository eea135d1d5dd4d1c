"""The linear-in-n objective against the paper's pair sum, and the blocks it is computed on."""

from __future__ import annotations

import pytest
import torch

from c2m3_fl.matching.problem import as_client_maps
from c2m3_fl.symmetry import PermutationSpec, SpecError
from tests.cases import SPECS, build_problem, pair_sum_objective, random_clients


def random_permutations(spec: PermutationSpec, clients: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.stack([torch.randperm(size, generator=generator) for _ in range(clients)])
        for size in spec.groups.values()
    ]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 2.0, 2.0]])
def test_objective_equals_the_pair_sum(name: str, weights: list[float] | None) -> None:
    spec = SPECS[name]
    state_dicts = random_clients(spec, 4)
    problem = build_problem(spec, state_dicts, weights)
    permutations = random_permutations(spec, 4, seed=5)
    maps = as_client_maps(problem.group_names, permutations, 4)
    mapped = [spec.apply(client, own) for client, own in zip(state_dicts, maps, strict=True)]
    mean_one = [weight * 4 / sum(weights) for weight in weights] if weights else None
    expected = pair_sum_objective(spec, mapped, mean_one)
    assert problem.objective(permutations) == pytest.approx(expected, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_every_matched_entry_is_in_exactly_one_block(name: str) -> None:
    spec = SPECS[name]
    (client,) = random_clients(spec, 1)
    problem = build_problem(spec, [client])
    moved = sum(float(block.data.double().square().sum()) for block in problem.blocks)
    fixed_names = set(spec.tensors) - set(spec.moved_tensors())
    norm = {name: float(client[name].double().square().sum()) for name in spec.tensors if name not in spec.carried}
    total, fixed = sum(norm.values()), sum(norm[name] for name in fixed_names if name in norm)
    assert moved == pytest.approx(total - fixed, rel=1e-6)


def test_running_statistics_do_not_enter_the_objective() -> None:
    spec = SPECS["convolutions"]
    clients = random_clients(spec, 2)
    problem = build_problem(spec, clients)
    before = problem.objective(problem.identity())
    clients[0]["norm.running_var"] *= 1e6
    assert build_problem(spec, clients).objective(problem.identity()) == before


def test_an_integer_tensor_that_is_not_carried_is_an_error_that_names_it() -> None:
    spec = PermutationSpec.from_axes({"a": 2}, {"steps": ("a",)})
    with pytest.raises(SpecError, match=r"'steps'.*carried"):
        build_problem(spec, [{"steps": torch.tensor([1, 2])}] * 2)
