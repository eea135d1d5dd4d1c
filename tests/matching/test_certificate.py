"""The cheap proof that the identity is optimal: never wrong, there for clients of a common start, as cheap as it says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from c2m3_fl.matching import MatchingProblem, certificate, identity_first, problem
from c2m3_fl.matching.certificate import certified_groups
from c2m3_fl.matching.identity_first import identity_is_optimal
from c2m3_fl.symmetry import PermutationSpec
from tests.cases import SPECS, build_problem, random_clients

THIN = {
    # few numbers a neuron: deviations point along the line between two means, where the bound is tight
    "line": PermutationSpec.from_axes({"a": 3}, {"w": ("a", 1)}),
    "plane": PermutationSpec.from_axes({"a": 4}, {"w": ("a", 2)}),
    "two blocks": PermutationSpec.from_axes({"a": 3, "b": 2}, {"w": ("a", 1), "v": ("b", "a"), "u": ("b", 1)}),
}
ONCE = {name: spec for name, spec in SPECS.items() if name != "recurrent"} | THIN


def certified(case: MatchingProblem) -> list[bool]:
    return certified_groups(case, [problem.weighted_sum(block.data, case.weights) for block in case.blocks])


def relative_gain(case: MatchingProblem, client: int, group: int) -> float:
    """What the best assignment of one client's group gains over the identity, relative to its value; in float64."""
    gains = np.zeros((case.group_sizes[group],) * 2)
    for block in case.blocks:
        for axis in block.axes_of(group):
            rows = block.data.double().movedim(axis + 1, 1).flatten(2)
            others = sum(w * rows[q] for q, w in enumerate(case.weights) if q != client)
            assert isinstance(others, Tensor)
            gains += (others @ rows[client].T).numpy()
    best = gains[linear_sum_assignment(gains, maximize=True)]
    return float((best.sum() - gains.trace()) / np.abs(gains).max(axis=1).sum())


def common_start(spec: PermutationSpec, seed: int) -> MatchingProblem:
    """Clients about one network, as far from it as may or may not be too far, each by an amount of its own."""
    random = np.random.default_rng(seed)
    clients = int(random.integers(2, 6))
    dtype = torch.float64 if seed % 2 else torch.float32
    (base,) = random_clients(spec, 1, seed, dtype)
    noise = np.exp(random.uniform(np.log(0.05), np.log(2.0))) * random.uniform(0.1, 1.0, clients)
    generator = torch.Generator().manual_seed(seed)
    near = [
        {k: v + float(own) * torch.randn(v.shape, generator=generator, dtype=dtype) for k, v in base.items()}
        for own in noise
    ]
    weights = np.exp(random.normal(0.0, 1.0, clients)).tolist() if seed % 3 else None
    return build_problem(spec, [{k: v.to(base[k].dtype) for k, v in each.items()} for each in near], weights)


def test_the_proof_is_never_wrong() -> None:
    proofs = close = refused = 0
    for name, spec in ONCE.items():
        for seed in range(800 if name in THIN else 60):
            case = common_start(spec, seed)
            for group, certain in enumerate(certified(case)):
                worst = max(relative_gain(case, client, group) for client in range(case.clients))
                proofs += certain
                refused += not certain
                close += not certain and worst <= 1e-9
                assert not certain or worst <= 1e-6, (name, seed, group)
    assert proofs > 1000
    assert refused - close > 500  # there was something to be wrong about


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0]])
@pytest.mark.parametrize("inside", [False, True])
def test_the_bound_is_tight_where_all_neurons_of_a_circle_move_on_by_half_a_place(
    weights: list[float], inside: bool
) -> None:
    size = 200
    spec = PermutationSpec.from_axes({"a": size}, {"w": ("a", 2)})
    theta = weights[1] / (sum(weights) - weights[1])
    angles = torch.arange(size, dtype=torch.float64) * (2 * torch.pi / size)
    means = torch.stack([angles.cos(), angles.sin()], 1)
    distance = float((means[0] - means[1]).norm())
    step = (0.99 if inside else 1.01) * distance / (2 + 2 * theta)
    onwards = step * torch.stack([-angles.sin(), angles.cos()], 1)
    clients = [{"w": means - theta * onwards}] * len(weights)
    clients[1] = {"w": means + onwards}
    case = build_problem(spec, clients, weights)
    assert certified(case) == [inside]
    assert (relative_gain(case, 1, 0) <= 0.0) == inside


def test_clients_that_trained_from_one_network_are_certified() -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(600, 20), torch.randint(0, 5, (600,))
    start = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5))
    state, spec = start.state_dict(), PermutationSpec.from_module(start, inputs[:2])
    state = {name: tensor.clone() for name, tensor in state.items()}
    clients = []
    for part in torch.arange(600).chunk(6):
        start.load_state_dict(state)
        optimizer = torch.optim.Adam(start.parameters(), 1e-3)
        for batch in part.split(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(start(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        clients.append({name: tensor.clone() for name, tensor in start.state_dict().items()})
    assert all(not torch.equal(a, b) for a, b in zip(clients[0].values(), clients[1].values(), strict=True))
    assert certified(build_problem(spec, clients)) == [True, True]


def test_a_certificate_takes_products_of_the_means_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    (base,) = random_clients(SPECS["mlp"], 1)
    products: list[int] = []

    def spy(left: Tensor, right: Tensor, axis: int, dtype: torch.dtype | None = None) -> Tensor:
        products.append(len(left))
        return contract(left, right, axis, dtype)

    contract = problem.contract
    for module in (problem, certificate):
        monkeypatch.setattr(module, "contract", spy)
    for clients in (2, 20):
        case = build_problem(SPECS["mlp"], [base] * clients)
        products.clear()
        assert identity_is_optimal(case)
        assert products == [1] * sum(block.order for block in case.blocks)


def test_only_groups_without_a_certificate_are_tested_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["concatenation"]
    (base,) = random_clients(spec, 1)
    other = {**base, "left.weight": -base["left.weight"]}
    case = build_problem(spec, [base, other])
    exact, seen = identity_first.no_assignment_gains, []

    def spy(case: MatchingProblem, sums: Sequence[Tensor], groups: Sequence[int]) -> bool:
        seen.extend(groups)
        return exact(case, sums, groups)

    monkeypatch.setattr(identity_first, "no_assignment_gains", spy)
    identity_is_optimal(case)
    assert seen == [group for group, certain in enumerate(certified(case)) if not certain]
    assert 0 < len(seen) < len(spec.groups)


def test_equal_neurons_are_no_proof_unless_they_are_dead() -> None:
    spec = PermutationSpec.from_axes({"a": 3}, {"w": ("a", 4)})
    rows = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert certified(build_problem(spec, [{"w": rows}, {"w": rows}])) == [True]
    apart = rows + 0.01 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert certified(build_problem(spec, [{"w": rows}, {"w": apart}])) == [False]


def test_rounding_errors_do_not_set_equal_neurons_apart() -> None:
    spec = PermutationSpec.from_axes({"a": 2}, {"w": ("a", 300)})
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        rows = (100.0 * torch.randn(300, generator=generator)).repeat(2, 1)
        clients = [{"w": rows + 1e-4 * torch.randn(2, 300, generator=generator)} for _ in range(3)]
        assert certified(build_problem(spec, clients)) == [False]
