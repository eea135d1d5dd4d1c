"""Alignment through the public functions."""

from __future__ import annotations

import itertools

import pytest
import torch

from c2m3_fl import ClientError, SpecError, align
from c2m3_fl.matching import MATCHERS
from c2m3_fl.symmetry import compose
from tests.cases import SPECS, pair_sum_objective, random_clients, related_clients


@pytest.mark.parametrize("clients", range(2, 13))
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_planted_permutations_are_recovered(spec: str, clients: int, noise: float) -> None:
    state_dicts = related_clients(SPECS[spec], clients, noise, seed=clients)
    mapped = align(state_dicts, SPECS[spec]).apply(state_dicts)
    for other in mapped[1:]:
        for name, tensor in mapped[0].items():
            # Counters do not move; everything else must coincide up to the noise, far below the entries' own size.
            assert (tensor.float() - other[name].float()).abs().max() <= 12 * noise, name


@pytest.mark.parametrize("matcher", MATCHERS)
def test_any_cycle_of_pairwise_maps_is_exactly_the_identity(matcher: str) -> None:
    spec = SPECS["attention"]
    alignment = align(random_clients(spec, 4), spec, matcher=matcher)
    for length in (2, 3, 4):
        for cycle in itertools.permutations(range(4), length):
            composed = spec.identity()
            for p, q in zip((*cycle[1:], cycle[0]), cycle, strict=True):
                composed = compose(composed, alignment.pairwise(p, q))
            for group, size in spec.groups.items():
                assert torch.equal(composed[group], torch.arange(size))


def test_pairwise_maps_one_client_onto_the_other() -> None:
    spec = SPECS["mlp"]
    state_dicts = related_clients(spec, 3)
    alignment = align(state_dicts, spec)
    mapped = spec.apply(state_dicts[2], alignment.pairwise(0, 2))
    for name, tensor in state_dicts[0].items():
        torch.testing.assert_close(mapped[name], tensor)


@pytest.mark.parametrize("matcher", MATCHERS)
def test_objective_is_the_pair_sum_of_the_mapped_clients(matcher: str) -> None:
    spec = SPECS["convolutions"]
    state_dicts = random_clients(spec, 3)
    alignment = align(state_dicts, spec, matcher=matcher)
    expected = pair_sum_objective(spec, alignment.apply(state_dicts))
    assert alignment.objective == pytest.approx(expected, rel=1e-5, abs=1e-3)
    assert alignment.objective_before == pytest.approx(pair_sum_objective(spec, state_dicts), rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("matcher", MATCHERS)
def test_order_of_clients_does_not_matter_to_the_bit(matcher: str) -> None:
    spec = SPECS["mlp"]
    state_dicts, weights = random_clients(spec, 4), [1.0, 2.0, 3.0, 2.0]
    first = align(state_dicts, spec, weights=weights, matcher=matcher)
    for order in [(3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1), (1, 2, 3, 0)]:
        again = align([state_dicts[i] for i in order], spec, weights=[weights[i] for i in order], matcher=matcher)
        assert again.history == first.history
        assert again.objective == first.objective
        for position, client in enumerate(order):
            for group, permutation in first.permutations[client].items():
                assert torch.equal(again.permutations[position][group], permutation)


@pytest.mark.parametrize("matcher", MATCHERS)
def test_scaling_all_weights_changes_nothing(matcher: str) -> None:
    spec = SPECS["mlp"]
    state_dicts = random_clients(spec, 3)
    first = align(state_dicts, spec, weights=[1, 2, 5], matcher=matcher)
    scaled = align(state_dicts, spec, weights=[4, 8, 20], matcher=matcher)
    assert first.history == scaled.history
    assert (
        align(state_dicts, spec, weights=[7, 7, 7], matcher=matcher).history
        == align(state_dicts, spec, matcher=matcher).history
    )


@pytest.mark.parametrize("matcher", MATCHERS)
def test_a_client_of_weight_zero_changes_nothing_but_its_own_map(matcher: str) -> None:
    spec = SPECS["mlp"]
    state_dicts = related_clients(spec, 4, noise=0.3)
    without = align(state_dicts[:3], spec, weights=[1, 2, 3], matcher=matcher)
    with_it = align(state_dicts, spec, weights=[1, 2, 3, 0], matcher=matcher)
    assert with_it.objective == without.objective
    for client in range(3):
        for group, permutation in without.permutations[client].items():
            assert torch.equal(with_it.permutations[client][group], permutation)


def test_a_client_of_weight_zero_is_mapped_to_the_others() -> None:
    spec = SPECS["mlp"]
    state_dicts = related_clients(spec, 4)
    mapped = align(state_dicts, spec, weights=[1, 2, 3, 0]).apply(state_dicts)
    for name, tensor in mapped[0].items():
        torch.testing.assert_close(mapped[3][name], tensor)


def test_one_client_is_its_own_universe() -> None:
    spec = SPECS["mlp"]
    alignment = align(random_clients(spec, 1), spec)
    assert alignment.moved == 0.0
    assert alignment.objective == pytest.approx(0.0, abs=1e-4)


def test_inputs_are_left_as_they_are() -> None:
    spec = SPECS["mlp"]
    state_dicts = random_clients(spec, 3)
    copies = [{name: tensor.clone() for name, tensor in client.items()} for client in state_dicts]
    align(state_dicts, spec).apply(state_dicts)
    for client, copy in zip(state_dicts, copies, strict=True):
        assert all(torch.equal(tensor, copy[name]) for name, tensor in client.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_client_that_is_not_finite_is_named(value: float) -> None:
    spec = SPECS["mlp"]
    state_dicts = random_clients(spec, 3)
    state_dicts[1]["mid.bias"][2] = value
    with pytest.raises(ClientError, match=r"client 1 .*'mid\.bias'.*NaN or infinite"):
        align(state_dicts, spec)


@pytest.mark.parametrize("weights", [[1, 2], [1, -1, 1], [1, float("nan"), 1], [0, 0, 0], [1, float("inf"), 1]])
def test_unusable_weights_are_errors(weights: list[float]) -> None:
    with pytest.raises(ClientError, match="weight"):
        align(random_clients(SPECS["mlp"], 3), SPECS["mlp"], weights=weights)


def test_other_keys_shapes_and_dtypes_are_named() -> None:
    spec = SPECS["mlp"]
    clients = random_clients(spec, 2)
    with pytest.raises(ClientError, match=r"client 1 .*'in\.bias' is missing"):
        align([clients[0], {k: v for k, v in clients[1].items() if k != "in.bias"}], spec)
    with pytest.raises(ClientError, match=r"client 1 .*'in\.bias' has shape \(8,\), not \(7,\)"):
        align([clients[0], clients[1] | {"in.bias": torch.zeros(8)}], spec)
    with pytest.raises(ClientError, match=r"client 1 .*'in\.bias' is of torch\.int64"):
        align([clients[0], clients[1] | {"in.bias": torch.zeros(7, dtype=torch.long)}], spec)
    with pytest.raises(SpecError, match="does not list"):
        align([client | {"extra": torch.zeros(1)} for client in clients], spec)
    with pytest.raises(ClientError, match="no clients"):
        align([], spec)


@pytest.mark.parametrize("spec", SPECS)
def test_devices_agree(spec: str, device: torch.device) -> None:
    state_dicts = related_clients(SPECS[spec], 5, noise=0.2)
    on_cpu = align(state_dicts, SPECS[spec], device="cpu")
    assert align(state_dicts, SPECS[spec], device=device).objective == pytest.approx(on_cpu.objective, rel=1e-4)
