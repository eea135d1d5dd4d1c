"""Alignment in groups: the same guarantees, a bounded number of clients at once, a measured loss."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from c2m3_fl import aggregate, align, average, hierarchy
from c2m3_fl.hierarchy import MappedClients, align_in_groups
from c2m3_fl.matching import CoordinateAscent, Matching, MatchingProblem
from tests.cases import SPECS, pair_sum_objective, random_clients, related_clients

SPEC = SPECS["mlp"]


class Watched:
    """Remembers how many clients a problem had."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def match(self, problem: MatchingProblem) -> Matching:
        self.sizes.append(problem.clients)
        return CoordinateAscent().match(problem)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [2, 5, 9, 17])
def test_copies_of_one_network_become_equal(name: str, count: int) -> None:
    clients = related_clients(SPECS[name], count)
    found = align_in_groups(clients, SPECS[name], group_size=4, device="cpu")
    first, *others = found.apply(clients)
    assert all(torch.allclose(tensor, other[key]) for other in others for key, tensor in first.items())


@pytest.mark.parametrize("group_size", [2, 3, 5])
def test_no_more_than_a_group_is_aligned_at_once(group_size: int) -> None:
    watched = Watched()
    align_in_groups(random_clients(SPEC, 23), SPEC, group_size=group_size, matcher=watched, device="cpu")
    assert max(watched.sizes) <= group_size


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 5.0, 2.0, 0.0, 1.0, 1.0]])
def test_the_objective_is_the_paper_s(weights: list[float] | None) -> None:
    clients = random_clients(SPEC, 7)
    found = align_in_groups(clients, SPEC, group_size=3, weights=weights, device="cpu")
    counted = [w for w in weights if w > 0] if weights else None
    scaled = [w * len(counted) / sum(counted) for w in weights] if weights and counted else None
    assert found.objective == pytest.approx(pair_sum_objective(SPEC, found.apply(clients), scaled), rel=1e-5)
    assert found.objective_before == pytest.approx(pair_sum_objective(SPEC, clients, scaled), rel=1e-5)
    flat = align(clients, SPEC, weights=weights, device="cpu")
    assert flat.objective_before == pytest.approx(found.objective_before, rel=1e-5)


def test_the_order_of_clients_does_not_matter_to_the_bit() -> None:
    clients = random_clients(SPEC, 5)
    first = align_in_groups(clients, SPEC, group_size=2, device="cpu")
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        found = align_in_groups([clients[i] for i in order], SPEC, group_size=2, device="cpu")
        for place, i in enumerate(order):
            assert equal(found.permutations[place], first.permutations[i])


def test_one_group_is_the_plain_alignment() -> None:
    clients = random_clients(SPEC, 4)
    flat, grouped = (
        align(clients, SPEC, device="cpu"),
        align_in_groups(clients, SPEC, group_size=4, device="cpu"),
    )
    assert all(equal(a, b) for a, b in zip(flat.permutations, grouped.permutations, strict=True))


def test_clients_mapped_on_demand_are_the_mapped_clients() -> None:
    clients = random_clients(SPEC, 4)
    alignment = align(clients, SPEC, device="cpu")
    lazy, mapped = MappedClients(alignment, clients), alignment.apply(clients)
    assert len(lazy) == 4
    assert all(equal(a, b) for a, b in zip(lazy, mapped, strict=True))
    assert all(equal(a, b) for a, b in zip(lazy[1:3], mapped[1:3], strict=True))
    assert equal(average(lazy), average(mapped))


def test_groups_of_one_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        align_in_groups(random_clients(SPEC, 3), SPEC, group_size=1)


def test_aggregation_in_groups_merges_all_clients() -> None:
    clients = related_clients(SPEC, 9, noise=0.01)
    layers = {"in": torch.nn.Linear(6, 7), "mid": torch.nn.Linear(7, 5), "out": torch.nn.Linear(5, 3)}
    module = torch.nn.ModuleDict(layers)
    grouped = aggregate(module, clients, spec=SPEC, group_size=3, device="cpu")
    flat = aggregate(module, clients, spec=SPEC, device="cpu")
    assert grouped.alignment.objective == pytest.approx(flat.alignment.objective, rel=1e-4)


def test_sweeps_recover_a_third_of_what_groups_lose_and_keep_account(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = recovered = 0.0
    for seed in range(4):
        clients = related_clients(SPEC, 9, noise=0.8, seed=seed)
        flat = align(clients, SPEC, device="cpu").objective
        swept = align_in_groups(clients, SPEC, group_size=3, device="cpu")
        with monkeypatch.context() as patched:
            patched.setattr(hierarchy, "sweeps", lambda *_: ())
            plain = align_in_groups(clients, SPEC, group_size=3, device="cpu")
        sweeps = [each.objective for each in swept.iterations if each.phase == "sweep"]
        assert sweeps[0] == pytest.approx(plain.objective, rel=1e-6)
        assert all(b >= a - 1e-9 * abs(a) for a, b in itertools.pairwise(sweeps))
        assert sweeps[-1] == pytest.approx(swept.objective, rel=1e-5)
        lost, recovered = lost + flat - plain.objective, recovered + swept.objective - plain.objective
    assert lost > 0
    assert recovered > lost / 3


def test_sweeps_see_weights_and_leave_clients_of_no_weight_out_of_the_sum() -> None:
    clients, weights = random_clients(SPEC, 7), [1.0, 0.0, 5.0, 2.0, 0.0, 1.0, 1.0]
    found = align_in_groups(clients, SPEC, group_size=3, weights=weights, device="cpu")
    sweeps = [each.objective for each in found.iterations if each.phase == "sweep"]
    assert len(sweeps) > 1
    assert sweeps[-1] == pytest.approx(found.objective, rel=1e-5)


@pytest.mark.parametrize("matcher", ["identity", "reference", Watched()])
def test_only_matchers_of_all_parameters_are_followed_by_sweeps(matcher: str | Watched) -> None:
    found = align_in_groups(random_clients(SPEC, 7), SPEC, group_size=3, matcher=matcher, device="cpu")
    assert all(each.phase != "sweep" for each in found.iterations)
    assert (found.moved == 0.0) == (matcher == "identity")
