"""Moments: exact, mergeable, and safe to receive from strangers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from c2m3_fl.activations import Moments, RepairError, Statistics, from_arrays, goal, measure, to_arrays
from c2m3_fl.repair import repair, repair_from_moments
from tests.repair import networks
from tests.repair.networks import NETWORKS, average, client, inputs


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    offset=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_moments_are_those_of_numpy(shape: list[int], axis: int, offset: float, seed: int) -> None:
    axis %= len(shape)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + offset
    found = Moments.of(values, axis)
    rows = np.moveaxis(values.double().numpy(), axis, 0).reshape(shape[axis], -1)
    assert found.count == rows.shape[1]
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.variance.numpy(), rows.var(1), rtol=1e-9, atol=1e-12)


def test_large_tensors_are_read_in_slices_without_a_trace() -> None:
    values = torch.randn(300, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 1e-3 + 100
    found = Moments.of(values, 1)
    var, mean = torch.var_mean(values.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.variance, var, rtol=1e-8, atol=0)


@given(cuts=st.lists(st.integers(1, 39), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pooling_parts_is_measuring_the_whole(cuts: list[int], seed: int) -> None:
    values = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 5 + 50
    parts = [Moments.of(part, 1) for part in np.split(values, sorted(set(cuts)))]  # type: ignore[call-overload]
    pooled, whole = Moments.pool(parts), Moments.of(values, 1)
    assert pooled.count == whole.count
    torch.testing.assert_close(pooled.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(pooled.variance, whole.variance, rtol=1e-11, atol=0)


def _moments(mean: list[float], variance: list[float], count: int = 4) -> dict[str, Moments]:
    return {"a": Moments(count, torch.tensor(mean).double(), torch.tensor(variance).double())}


def test_the_goal_is_equations_7_and_8() -> None:
    found = goal([_moments([1, 0], [4, 1]), _moments([3, 0], [16, 1])], weights=[3, 1])["a"]
    assert found.mean.tolist() == [1.5, 0]
    assert found.std.tolist() == [2.5, 1]


def test_the_pooled_spread_is_that_of_all_activations_together() -> None:
    values = torch.randn(3, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values += torch.tensor([0.0, 2.0, 5.0])[:, None, None]
    found = goal([{"a": Moments.of(part, 1)} for part in values], spread="pooled")["a"]
    whole = Moments.of(values.flatten(0, 1), 1)
    torch.testing.assert_close(found.mean, whole.mean)
    torch.testing.assert_close(found.std, whole.std)


def test_clients_that_measured_something_else_are_named() -> None:
    with pytest.raises(RepairError, match=r"client 1 .*'b'"):
        goal([_moments([1], [1]), {"b": _moments([1], [1])["a"]}])
    with pytest.raises(RepairError, match=r"client 1 has 2 channels at the layer 'a'"):
        goal([_moments([1], [1]), _moments([1, 2], [1, 2])])
    with pytest.raises(RepairError, match="spread 'median'"):
        goal([_moments([1], [1])], spread="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_sites_come_in_the_order_of_the_forward_pass_and_survive_as_arrays(name: str) -> None:
    state = client(NETWORKS[name], 0)
    found = measure(NETWORKS[name], state, inputs(), device="cpu")
    split = measure(NETWORKS[name](), state, list(inputs().split(7)), device="cpu")
    back = from_arrays(to_arrays(found))
    assert list(found) == list(back) == list(split)
    assert len(found) >= 3
    for site, moments in found.items():
        assert back[site].count == moments.count == split[site].count
        assert torch.equal(back[site].mean, moments.mean)
        assert torch.equal(back[site].variance, moments.variance)
        torch.testing.assert_close(split[site].variance, moments.variance, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x.y.count": np.array(0.0)}, "'x.y' hold impossible"),
        ({"x.y.count": np.array(1.5)}, "'x.y' hold impossible"),
        ({"x.y.variance": np.array([1.0, -1.0])}, "'x.y' hold impossible"),
        ({"x.y.mean": np.array([1.0, math.nan])}, "'x.y' hold impossible"),
        ({"x.y.mean": np.array([1.0])}, "'x.y' have shapes"),
        ({"x.y.extra": np.array([1.0])}, "x.y.extra"),
        ({"z.mean": np.array([1.0])}, "'z' lack count, variance"),
    ],
)
def test_impossible_arrays_are_refused(change: dict[str, np.ndarray], words: str) -> None:  # type: ignore[type-arg]
    good = {"x.y.count": np.array(3.0), "x.y.mean": np.zeros(2), "x.y.variance": np.ones(2)}
    assert from_arrays(good)["x.y"].count == 3
    with pytest.raises(RepairError, match=words):
        from_arrays(good | change)


def test_measuring_names_a_state_dict_that_does_not_fit() -> None:
    with pytest.raises(RepairError, match=r"the state dict lacks .*5\.bias"):
        measure(networks.mlp, {k: v for k, v in client(networks.mlp, 0).items() if k != "5.bias"}, inputs())


def _stats(found: dict[str, Moments]) -> dict[str, Statistics]:
    return goal([found])


@pytest.mark.parametrize("name", ["mlp", "resnet-layernorm", "resnet-batchnorm"])
def test_repair_from_moments_site_by_site_is_repair(name: str) -> None:
    build, x = NETWORKS[name], inputs()
    states = [client(build, seed) for seed in range(3)]
    merged = average(states)
    # repair measures the clients with BatchNorm by the statistics of the calibration set
    fresh = [repair(build, state, [state], x, method="recalibrate", device="cpu") for state in states]
    aim = goal([measure(build, state, x, device="cpu") for state in fresh])
    state = merged
    for site in aim:
        current = _stats(measure(build, state, x, device="cpu"))
        state = repair_from_moments(build, state, {site: aim[site]}, current)
    wanted = repair(build, merged, states, x, device="cpu")
    module = build().eval()
    outputs = []
    for repaired in (state, wanted):
        module.load_state_dict(repaired)
        with torch.no_grad():
            outputs.append(module(x))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    assert [(k, v.shape, v.dtype) for k, v in state.items()] == [(k, v.shape, v.dtype) for k, v in merged.items()]
    for key in merged:
        if key.endswith(("running_mean", "running_var", "norm1.weight")):
            torch.testing.assert_close(state[key], wanted[key], rtol=0.01, atol=0.01)


def test_repair_from_moments_at_the_goal_changes_nothing() -> None:
    build = NETWORKS["resnet-layernorm"]
    state = client(build, 0)
    at = _stats(measure(build, state, inputs(), device="cpu"))
    for key, value in repair_from_moments(build, state, at, at).items():
        torch.testing.assert_close(value, state[key], rtol=1e-6, atol=1e-6)


def test_statistics_that_do_not_fit_are_named() -> None:
    state = client(networks.mlp, 0)
    good = _stats(measure(networks.mlp, state, inputs(), device="cpu"))

    def error(goals: dict[str, Statistics], current: dict[str, Statistics]) -> str:
        with pytest.raises(RepairError) as raised:
            repair_from_moments(networks.mlp, state, goals, current)
        return str(raised.value)

    short = Statistics(good["3"].mean[:2], good["3"].std[:2])
    broken = Statistics(good["3"].mean, -good["3"].std)
    assert "not measured at the layer '3'" in error(good, {k: v for k, v in good.items() if k != "3"})
    assert "goal of the layer '3' has shapes (2,)" in error(good | {"3": short}, good)
    assert "current statistics of the layer '3' holds impossible" in error(good, good | {"3": broken})
    assert "'2', which is no layer" in error({"2": good["3"]}, {"2": good["3"]})

    def tied() -> nn.Module:
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        return nn.Sequential(first, second)

    stats = {"0": Statistics(torch.zeros(4), torch.ones(4))}
    with pytest.raises(RepairError, match="'0' cannot be corrected: another layer shares"):
        repair_from_moments(tied, tied().state_dict(), stats, stats)
