"""Activation matching, alone and beside the parameters, through the public functions."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from c2m3_fl import PermutationSpec, RepairError, aggregate, align, align_in_groups
from c2m3_fl.activations.calibration import CalibrationSet
from c2m3_fl.activations.network import private_network
from c2m3_fl.activations.recording import record
from c2m3_fl.matching import ActivationMatcher, RecordedActivationMatcher
from c2m3_fl.matching.activation_matching import activation_rows
from c2m3_fl.symmetry import compose
from tests.cases import build_problem
from tests.repair.networks import NETWORKS, State, client, inputs


def copies(module: nn.Module, state: State, count: int, seed: int = 0) -> tuple[PermutationSpec, list[State]]:
    spec = PermutationSpec.from_module(module, inputs(2), prove=False)
    generator = torch.Generator().manual_seed(seed)
    return spec, [spec.apply(state, spec.random(generator)) for _ in range(count)]


def rescaled(state: State, seed: int) -> State:
    """The same perceptron but for positive scales of its first hidden layer, undone in the second one's weights."""
    scale = torch.exp(torch.empty(16).uniform_(-3, 3, generator=torch.Generator().manual_seed(seed)))
    changed = dict(state)
    changed["1.weight"], changed["1.bias"] = state["1.weight"] * scale[:, None], state["1.bias"] * scale
    changed["3.weight"] = state["3.weight"] / scale
    return changed


def distance(mapped: list[State], spec: PermutationSpec) -> float:
    return max(
        float((a[n] - mapped[0][n]).abs().max()) for a in mapped for n in spec.tensors if a[n].is_floating_point()
    )


@pytest.mark.parametrize("share", [0.1, math.inf])
@pytest.mark.parametrize("name", NETWORKS)
def test_planted_permutations_are_recovered(name: str, share: float) -> None:
    module = NETWORKS[name]()
    spec, copied = copies(module, client(NETWORKS[name], 1), 4)
    matcher = ActivationMatcher(module, inputs(), share)
    if name == "transformer" and math.isinf(share):  # the attention's heads end in no bias of their own
        with pytest.raises(RepairError, match=r"self_attn\.heads.*finite share"):
            align(copied, spec, matcher=matcher)
        return
    for clients in (2, 3, 4):
        alignment = align(copied[:clients], spec, matcher=matcher)
        assert distance(alignment.apply(copied[:clients]), spec) < 1e-6


def test_neurons_of_equal_responses_meet_though_their_scales_differ() -> None:
    module = NETWORKS["mlp"]()
    spec, state_dicts = copies(module, client(NETWORKS["mlp"], 1), 3)
    clients = [rescaled(state, seed) for seed, state in enumerate(state_dicts)]

    def correlated(matcher: ActivationMatcher | str) -> float:
        maps = align(clients, spec, matcher=matcher).permutations
        mapped = [spec.apply(state, own) for state, own in zip(state_dicts, maps, strict=True)]
        return distance(mapped, spec)

    assert correlated(ActivationMatcher(module, inputs(64), math.inf)) < 1e-6
    assert correlated("default") > 0.1


def test_any_cycle_of_pairwise_maps_is_exactly_the_identity() -> None:
    module = NETWORKS["plain cnn"]()
    spec = PermutationSpec.from_module(module, inputs(2), prove=False)
    alignment = align(
        [client(NETWORKS["plain cnn"], s) for s in range(3)], spec, matcher=ActivationMatcher(module, inputs())
    )
    for p, q, r in itertools.permutations(range(3)):
        around = compose(compose(alignment.pairwise(q, p), alignment.pairwise(r, q)), alignment.pairwise(p, r))
        assert all(torch.equal(order, torch.arange(len(order))) for order in around.values())


@pytest.mark.parametrize("share", [0.1, math.inf])
def test_order_of_clients_and_repetition_do_not_matter_to_the_bit(share: float) -> None:
    module = NETWORKS["mlp"]()
    spec = PermutationSpec.from_module(module, inputs(2), prove=False)
    state_dicts, weights = [client(NETWORKS["mlp"], s) for s in range(3)], [1.0, 2.0, 3.0]
    first = align(state_dicts, spec, weights=weights, matcher=ActivationMatcher(module, inputs(), share))
    for order in itertools.permutations(range(3)):
        matcher = ActivationMatcher(module, iter([inputs()]), share)
        again = align([state_dicts[i] for i in order], spec, weights=[weights[i] for i in order], matcher=matcher)
        assert again.history == first.history
        for position, index in enumerate(order):
            for group, permutation in first.permutations[index].items():
                assert torch.equal(again.permutations[position][group], permutation)


def test_a_larger_share_trades_parameters_for_correlation() -> None:
    module = NETWORKS["resnet-layernorm"]()
    spec = PermutationSpec.from_module(module, inputs(2), prove=False)
    state_dicts = [client(NETWORKS["resnet-layernorm"], s) for s in range(4)]

    def objective(share: float) -> float:
        return align(state_dicts, spec, matcher=ActivationMatcher(module, inputs(), share)).objective

    assert objective(0.01) > objective(1.0) > objective(100.0)


def test_whole_merges_take_it() -> None:
    module, data = NETWORKS["mlp"](), inputs(64)
    spec, state_dicts = copies(module, client(NETWORKS["mlp"], 1), 5)
    matcher = ActivationMatcher(module, data)
    merged = aggregate(module, state_dicts, calibration=data, matcher=matcher)
    module.load_state_dict(state_dicts[0])
    expected = module(data)
    module.load_state_dict(merged.state_dict)
    torch.testing.assert_close(module(data), expected, rtol=1e-4, atol=1e-4)
    assert distance(align_in_groups(state_dicts, spec, group_size=2, matcher=matcher).apply(state_dicts), spec) < 1e-6
    weighted = align(state_dicts, spec, weights=[1, 2, 0, 1, 0], matcher=matcher)
    assert distance(weighted.apply(state_dicts), spec) < 1e-6


def test_module_and_its_parameters_stay_as_they_are() -> None:
    module = NETWORKS["mlp"]()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    spec, state_dicts = copies(module, client(NETWORKS["mlp"], 1), 2)
    align(state_dicts, spec, matcher=ActivationMatcher(module, inputs()))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_neurons_that_never_respond_do_no_harm() -> None:
    module = NETWORKS["mlp"]()
    state = client(NETWORKS["mlp"], 1)
    state["1.weight"][:5], state["3.weight"][2:4] = 0, 0
    spec, state_dicts = copies(module, state, 3)
    assert (
        distance(align(state_dicts, spec, matcher=ActivationMatcher(module, inputs())).apply(state_dicts), spec) < 1e-6
    )


@pytest.mark.parametrize("share", [0.0, -1.0, math.nan])
def test_a_share_that_is_not_positive_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match="share is"):
        ActivationMatcher(nn.Linear(2, 2), torch.zeros(1, 2), share)


@pytest.mark.parametrize(("calibration", "message"), [([], "empty"), (torch.full((2, 3), math.nan), "NaN")])
def test_an_unusable_calibration_set_is_an_error(calibration: list[Tensor] | Tensor, message: str) -> None:
    with pytest.raises(RepairError, match=message):
        ActivationMatcher(nn.Linear(3, 2), calibration)


def test_a_group_that_no_layer_shows_is_named() -> None:
    blind = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 6, bias=False), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    spec, state_dicts = copies(blind, blind.state_dict(), 2)
    with pytest.raises(RepairError, match=r"shows the groups 1\.out.*finite share"):
        align(state_dicts, spec, matcher=ActivationMatcher(blind, inputs(), math.inf))
    assert (
        distance(align(state_dicts, spec, matcher=ActivationMatcher(blind, inputs())).apply(state_dicts), spec) < 1e-6
    )
    bare = nn.Sequential(nn.Flatten(), nn.Linear(192, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))
    spec, state_dicts = copies(bare, bare.state_dict(), 2)
    with pytest.raises(RepairError, match="match by the parameters"):
        align(state_dicts, spec, matcher=ActivationMatcher(bare, inputs()))


def test_activations_that_are_not_finite_name_the_layer() -> None:
    module = NETWORKS["mlp"]()
    spec, state_dicts = copies(module, client(NETWORKS["mlp"], 1), 2)
    for state in state_dicts:
        state["3.weight"] *= 1e38
    with pytest.raises(RepairError, match=r"client 0: activations of the layer '3' are not finite"):
        align(state_dicts, spec, matcher=ActivationMatcher(module, 1e4 * inputs()))


def test_sums_of_clients_have_no_activations() -> None:
    module = NETWORKS["mlp"]()
    spec, state_dicts = copies(module, client(NETWORKS["mlp"], 1), 2)
    problem = replace(build_problem(spec, state_dicts), state_dicts=())
    with pytest.raises(ValueError, match="whole clients"):
        ActivationMatcher(module, inputs()).match(problem)


def test_recorded_outputs_give_the_same_maps_as_passes_of_its_own() -> None:
    module = NETWORKS["resnet-layernorm"]()
    spec = PermutationSpec.from_module(module, inputs(2), prove=False)
    clients = [client(NETWORKS["resnet-layernorm"], seed) for seed in range(3)]
    with private_network(module, torch.device("cpu")) as network:
        batches = CalibrationSet.read(list(inputs().split(7)), module).batches
        sites = network.sites(batches[0])
        rows = activation_rows(sites, spec)
        outputs = [record(network, each, sites, batches, "a client", rows=rows).outputs for each in clients]
    own = align(clients, spec, matcher=ActivationMatcher(module, inputs(), math.inf), device="cpu")
    given = align(clients, spec, matcher=RecordedActivationMatcher(clients, outputs, math.inf), device="cpu")
    for p in range(3):
        assert all(torch.equal(own.permutations[p][group], given.permutations[p][group]) for group in spec.groups)
    # the parameters alone say something else, and are what is left for clients that were not recorded
    plain = align(clients, spec, device="cpu")
    assert any(not torch.equal(plain.permutations[p][g], own.permutations[p][g]) for p in range(3) for g in spec.groups)
    unknown = align([dict(each) for each in clients], spec, matcher=RecordedActivationMatcher(clients, outputs))
    assert all(torch.equal(plain.permutations[p][g], unknown.permutations[p][g]) for p in range(3) for g in spec.groups)


def test_recordings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 recording\(s\) of 2 client\(s\)"):
        RecordedActivationMatcher([{}, {}], [{}])
    with pytest.raises(ValueError, match="share is 0"):
        RecordedActivationMatcher([], [], 0)
