"""Least squares: the fit against oracles, and what a user relies on over the table of networks."""

import copy
import logging
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from c2m3_fl.repair import repair
from c2m3_fl.repair.least_squares import fit
from c2m3_fl.repair.methods import Method
from c2m3_fl.symmetry import PermutationSpec
from tests.repair.networks import NETWORKS, ODD_NETWORKS, State, average, client, inputs

BUILDS = NETWORKS | ODD_NETWORKS
every_network = pytest.mark.parametrize("name", BUILDS)


def output(name: str, state: State, x: Tensor) -> Tensor:
    module = BUILDS[name]().eval()
    module.load_state_dict(state)
    with torch.no_grad():
        found: Tensor = module(x)
    return found


@given(
    shape=st.tuples(st.integers(2, 40), st.integers(1, 3), st.integers(1, 30), st.integers(1, 4)),
    ridge=st.sampled_from([1e-3, 0.1, 10.0]),
    intercept=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_the_fit_is_that_of_lstsq(shape: tuple[int, int, int, int], ridge: float, intercept: bool, seed: int) -> None:
    rows, groups, width, outputs = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, groups, width, generator=generator, dtype=torch.float64) + 3
    y = torch.randn(rows, groups, outputs, generator=generator, dtype=torch.float64)
    change, shift = fit(x, y, ridge, intercept=intercept)
    assert change.shape == (groups, outputs, width)
    assert shift.shape == (groups, outputs)
    for group in range(groups):
        a, b = x[:, group].numpy(), y[:, group].numpy()
        centred = a - a.mean(0) if intercept else a
        penalty = ridge * (centred**2).sum() / width
        design = np.hstack([a, np.ones((rows, int(intercept)))])
        shrink = np.hstack([math.sqrt(penalty) * np.eye(width), np.zeros((width, int(intercept)))])
        wanted = np.linalg.lstsq(np.vstack([design, shrink]), np.vstack([b, np.zeros((width, outputs))]), rcond=None)[0]
        np.testing.assert_allclose(change[group].numpy().T, wanted[:width], rtol=1e-6, atol=1e-8)
        if intercept:
            np.testing.assert_allclose(shift[group].numpy(), wanted[width], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rows", [8, 5000])
def test_a_fit_in_single_precision_holds_far_from_the_origin(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 1, 20, generator=generator) + 1000
    y = torch.randn(rows, 1, 3, generator=generator)
    found, wanted = (fit(x.to(kind), y.to(kind), 0.01, intercept=True) for kind in (torch.float32, torch.float64))
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("rows", [4, 50])
def test_inputs_that_do_not_vary_change_the_bias_alone(value: float, rows: int) -> None:
    change, shift = fit(torch.full((rows, 1, 6), value), torch.ones(rows, 1, 2), 0.01, intercept=True)
    assert torch.equal(change, torch.zeros_like(change))
    torch.testing.assert_close(shift, torch.ones(1, 2, dtype=torch.float64))


@every_network
def test_permuted_copies_of_a_network_give_it_back(name: str) -> None:
    """Clients that are one network under permutations, mapped back: the average is the network, and stays it."""
    state, x = client(BUILDS[name], 3), inputs()
    fitted = repair(BUILDS[name], state, [state] * 3, x, method="least-squares", device="cpu")
    state = repair(BUILDS[name], state, [state], x, method="recalibrate", device="cpu")
    torch.testing.assert_close(output(name, fitted, x), output(name, state, x), rtol=1e-3, atol=1e-4)
    if not any(key.endswith("running_mean") for key in state):
        for key, value in state.items():
            torch.testing.assert_close(fitted[key], value, rtol=1e-5, atol=1e-5)


def test_least_squares_finds_a_network_that_noise_has_hidden() -> None:
    """The merged network is no client's, but one matrix per layer computes what all clients compute."""
    state, x = client(NETWORKS["mlp"], 3), inputs(2000)
    generator = torch.Generator().manual_seed(0)
    merged = {key: value + 0.3 * torch.randn(value.shape, generator=generator) for key, value in state.items()}
    fitted = repair(NETWORKS["mlp"], merged, [state] * 2, x, method="least-squares", device="cpu")
    wanted, fresh = output("mlp", state, inputs(seed=9)), inputs(seed=9)
    before, after = ((output("mlp", each, fresh) - wanted).square().mean() for each in (merged, fitted))
    assert after < 0.01 * before


@every_network
def test_the_merged_network_comes_closer_to_its_clients(name: str) -> None:
    states, x = [client(BUILDS[name], seed) for seed in range(3)], inputs(200)
    merged = average(states)
    fresh = [repair(BUILDS[name], state, [state], x, method="recalibrate", device="cpu") for state in states]
    goal = torch.stack([output(name, state, x) for state in fresh]).mean(0)
    loss = {"average": float((output(name, merged, x) - goal).square().mean())}
    for method in ("repair", "least-squares"):
        fitted = repair(BUILDS[name], merged, states, x, method=method, device="cpu")  # type: ignore[arg-type]
        loss[method] = float((output(name, fitted, x) - goal).square().mean())
    assert loss["least-squares"] < min(loss["average"], loss["repair"])


@every_network
def test_batches_do_not_matter(name: str) -> None:
    states, x = [client(BUILDS[name], seed) for seed in range(3)], inputs()
    merged = average(states)
    whole = repair(BUILDS[name], merged, states, x, method="least-squares", device="cpu")
    parts = repair(BUILDS[name], merged, states, x.split([5, 12, 7]), method="least-squares", device="cpu")
    assert [(k, v.shape, v.dtype) for k, v in whole.items()] == [(k, v.shape, v.dtype) for k, v in merged.items()]
    torch.testing.assert_close(output(name, parts, x), output(name, whole, x), rtol=1e-3, atol=1e-3)


def test_least_squares_follows_a_permutation_of_the_neurons() -> None:
    name, x = "resnet-batchnorm", inputs()
    spec = PermutationSpec.from_module(BUILDS[name](), x[:2])
    generator = torch.Generator().manual_seed(0)
    order = {group: torch.randperm(size, generator=generator) for group, size in spec.groups.items()}
    states = [client(BUILDS[name], seed) for seed in range(3)]
    plain = repair(BUILDS[name], average(states), states, x, method="least-squares", device="cpu")
    moved = [spec.apply(state, order) for state in states]
    for key, value in repair(BUILDS[name], average(moved), moved, x, method="least-squares", device="cpu").items():
        torch.testing.assert_close(value, spec.apply(plain, order)[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_their_dtype(dtype: torch.dtype) -> None:
    states = [{key: value.to(dtype) for key, value in client(NETWORKS["mlp"], seed).items()} for seed in range(2)]
    module = NETWORKS["mlp"]().to(dtype)
    fitted = repair(module, average(states), states, inputs(), method="least-squares", device="cpu")
    assert {value.dtype for value in fitted.values()} == {dtype}
    assert all(bool(value.isfinite().all()) for value in fitted.values())


def test_the_output_layer_is_fitted_only_on_request() -> None:
    states = [client(NETWORKS["mlp"], seed) for seed in range(3)]
    merged = average(states)
    kept = repair(NETWORKS["mlp"], merged, states, inputs(), method="least-squares", output_layer=False, device="cpu")
    assert torch.equal(kept["5.weight"], merged["5.weight"])
    assert not torch.equal(kept["3.weight"], merged["3.weight"])


def test_nothing_of_the_callers_changes() -> None:
    name = "resnet-batchnorm"
    module, states = BUILDS[name]().train(), [client(BUILDS[name], seed) for seed in range(2)]
    merged, kept = average(states), copy.deepcopy(states)
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    repair(module, merged, states, inputs().split(7), method="least-squares", device="cpu")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(torch.equal(a[key], b[key]) for a, b in zip(states, kept, strict=True) for key in a)
    assert isinstance(module, nn.Sequential)
    assert not module[0]._forward_hooks


def dead(state: State) -> State:
    """Without signal in the channels of even places."""
    return {
        k: v * (torch.arange(len(v)) % 2).view(-1, *[1] * (v.dim() - 1)) if v.dim() > 1 else v for k, v in state.items()
    }


def with_constant_channels(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:] = 3.0
    return x


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "one example": lambda x: x[:1],
    "three examples": lambda x: x[:3],
    "equal examples": lambda x: x[:1].repeat(24, 1, 1, 1),
    "zeros": torch.zeros_like,
    "constant channels": with_constant_channels,
    "far from the origin": lambda x: x + 1000,
    "huge": lambda x: x * 1e6,
    "dead channels": lambda x: x,
}


@every_network
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("method", ["least-squares", "least-squares-bounded"])
def test_with_poor_inputs_the_network_is_finite_and_no_worse_than_the_average(
    name: str, how: str, method: Method
) -> None:
    states, x = [client(BUILDS[name], seed) for seed in range(3)], SPOILT[how](inputs())
    if how == "dead channels":
        states = [dead(state) for state in states]
    merged = average(states)
    fitted = repair(BUILDS[name], merged, states, x, method=method, device="cpu")
    assert all(bool(value.isfinite().all()) for value in fitted.values() if value.is_floating_point())
    fresh = [repair(BUILDS[name], state, [state], x, method="recalibrate", device="cpu") for state in states]
    goal = torch.stack([output(name, state, x) for state in fresh]).mean(0)
    before, after = (float((output(name, each, x) - goal).square().mean()) for each in (merged, fitted))
    assert after <= before * (1 + 1e-3) + 1e-6


def test_what_cannot_be_fitted_is_repaired_and_named(caplog: pytest.LogCaptureFixture) -> None:
    name = "what cannot be fitted"
    states = [client(BUILDS[name], seed) for seed in range(3)]
    merged = average(states)
    with caplog.at_level(logging.INFO):
        fitted = repair(BUILDS[name], merged, states, inputs(), method="least-squares", device="cpu")
    changed = {key.split(".")[0] for key in merged if not torch.equal(merged[key], fitted[key])}
    assert changed == {"left", "right", "pair", "head"}
    assert "least squares cannot fit the layers pair" in caplog.text
    assert torch.equal(fitted["table.weight"], fitted["tied.weight"])
