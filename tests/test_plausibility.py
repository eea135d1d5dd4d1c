"""Networks that nobody can have trained are told, and honest ones stay however unequal they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from c2m3_fl.plausibility import implausible
from tests.federation.unequal import FAMILIES, refusals, simulate

StateDict = dict[str, Tensor]


def raw_features() -> nn.Sequential:
    """BatchNorm on raw inputs, whose running statistics are in the features' units."""
    return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def state(module: nn.Module) -> StateDict:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def trained(start: StateDict, units: float, seed: int, make: Callable[[], nn.Module] = raw_features) -> StateDict:
    torch.manual_seed(seed)
    module = make()
    module.load_state_dict(start)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    inputs = units * torch.randn(64, 6)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), inputs[:, :3].argmax(1)).backward()
        optimizer.step()
    return state(module)


def with_start(make: Callable[[], nn.Module] = raw_features) -> StateDict:
    torch.manual_seed(0)
    return state(make())


PARAMETERS = [name for name, _ in raw_features().named_parameters()]


def changed(client: StateDict, change: Callable[[str, Tensor], Tensor], *names: str) -> StateDict:
    return {name: change(name, tensor) if name in names else tensor for name, tensor in client.items()}


def shifted(tensor: Tensor) -> Tensor:
    moved = tensor.clone()
    moved[0] += 100
    return moved


LIES: dict[str, Callable[[StateDict], StateDict]] = {
    "weights times 50": lambda own: changed(own, lambda _, t: 50 * t, *PARAMETERS),
    "a head times 1000": lambda own: changed(own, lambda _, t: 1000 * t, "3.weight"),
    "an output bias of +100": lambda own: changed(own, lambda _, t: shifted(t), "3.bias"),
    "a norm's bias of +100": lambda own: changed(own, lambda _, t: shifted(t), "0.bias"),
    "ten times the network": lambda own: changed(own, lambda _, t: 10 * t, *PARAMETERS),
    "negative variance": lambda own: changed(own, lambda _, t: -t, "0.running_var"),
    "absurd variance": lambda own: changed(own, lambda _, t: t + 1e25, "0.running_var"),
    "absurd mean": lambda own: changed(own, lambda _, t: t + 1e25, "0.running_mean"),
    "negative counter": lambda own: changed(own, lambda _, t: t - 10**9, "0.num_batches_tracked"),
    "zeros": lambda own: changed(own, lambda _, t: torch.zeros_like(t), *PARAMETERS),
    "nearly zeros": lambda own: changed(own, lambda _, t: 1e-9 * t, *PARAMETERS),
}


@pytest.mark.parametrize("units", [1.0, 1e4])
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_named_whatever_the_units_of_the_features(lie: str, units: float) -> None:
    start = with_start()
    clients = [trained(start, units, seed) for seed in range(5)]
    clients[2] = LIES[lie](clients[2])
    reasons = implausible(clients, start, PARAMETERS)
    assert [reason is not None for reason in reasons] == [False, False, True, False, False]


def test_the_tensor_is_named() -> None:
    start = with_start()
    clients = [trained(start, 1.0, seed) for seed in range(4)]
    found = implausible([*clients, LIES["an output bias of +100"](clients[0])], start, PARAMETERS)[-1]
    assert found is not None
    assert "'3.bias'" in found
    found = implausible([*clients, LIES["negative variance"](clients[0])], start, PARAMETERS)[-1]
    assert found is not None
    assert "'0.running_var'" in found
    assert "not negative" in found


def test_a_site_whose_features_are_in_other_units_stays() -> None:
    start = with_start()
    clients = [trained(start, units, seed) for seed, units in enumerate((1.0, 1.0, 1.0, 1e5))]
    assert implausible(clients, start, PARAMETERS) == [None] * 4
    assert implausible(clients, start) == [None] * 4


def logistic() -> nn.Linear:
    module = nn.Linear(6, 3)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


def steps(number: int, seed: int) -> StateDict:
    """A client that did so many steps from zeros."""
    torch.manual_seed(seed)
    module, inputs = logistic(), torch.randn(400, 6)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(number):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), inputs[:, :3].argmax(1)).backward()
        optimizer.step()
    return state(module)


@pytest.mark.parametrize("numbers", [[20], [1, 13], [1, 13, 13], [1, 1, 500], [1, 1, 1, 500], [0, 0, 0, 5]])
def test_from_a_start_of_zeros_everybody_stays(numbers: list[int]) -> None:
    clients = [steps(number, seed) for seed, number in enumerate(numbers)]
    assert implausible(clients, state(logistic()), ["weight", "bias"]) == [None] * len(numbers)


def test_from_a_start_of_zeros_a_liar_is_named_where_the_others_agree() -> None:
    clients = [steps(20, seed) for seed in range(4)]
    clients.append({name: 1000 * tensor for name, tensor in clients[0].items()})
    found = implausible(clients, state(logistic()), ["weight", "bias"])
    assert [reason is not None for reason in found] == [False] * 4 + [True]


def test_clients_from_their_own_starts_stay() -> None:
    clients = []
    for seed in range(4):
        torch.manual_seed(100 + seed)
        clients.append(trained(state(raw_features()), 1.0, seed))
    assert implausible(clients, with_start(), PARAMETERS) == [None] * 4


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_clients_are_not_outvoted(count: int) -> None:
    start = with_start()
    clients = [changed(trained(start, 1.0, 1), lambda _, t: 60 * t, *PARAMETERS), trained(start, 1.0, 2)][:count]
    assert implausible(clients, start, PARAMETERS) == [None] * count


def test_a_tensor_that_nobody_else_moves_is_no_fault_and_no_hiding_place() -> None:
    start = {"a.weight": torch.randn(8, 8), "b.weight": torch.zeros(8, 8)}
    clients = [
        {"a.weight": start["a.weight"] + 0.1 * torch.randn(8, 8), "b.weight": torch.zeros(8, 8)} for _ in range(4)
    ]
    clients[0] = clients[0] | {"b.weight": 0.3 * torch.randn(8, 8)}
    assert implausible(clients, start) == [None] * 4
    clients[0] = clients[0] | {"b.weight": torch.full((8, 8), 1e6)}
    assert [reason is not None for reason in implausible(clients, start)] == [True, False, False, False]


def test_entries_that_are_infinite_by_design_do_not_count() -> None:
    start = {"mask": torch.full((2, 2), -torch.inf), "weight": torch.ones(2, 2)}
    assert implausible([dict(start)] * 3, start, ["weight"]) == [None] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_no_honest_client_is_refused_however_unequal(family: str) -> None:
    found = refusals(simulate(family, 40, seed=3))
    assert not any(found.values()), found
