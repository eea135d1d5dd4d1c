"""What a user of `repair` relies on, over one table of networks."""

import copy
import logging
import math

import pytest
import torch
from torch import Tensor, nn

from c2m3_fl.activations import RepairError, measure
from c2m3_fl.repair import repair
from c2m3_fl.repair.bounds import largest, weight_norms
from tests.repair import networks
from tests.repair.networks import NETWORKS, State, average, client, inputs

TOLERANCE = 1e-4
"""Of means and standard deviations, relative to the goal's standard deviation."""

WEIGHTS = [1.0, 4.0, 2.0]

every_network = pytest.mark.parametrize("name", NETWORKS)


def clients_of(name: str, seed: int = 0) -> list[State]:
    return [client(NETWORKS[name], 10 * seed + index) for index in range(3)]


def recalibrated(name: str, state: State, x: Tensor) -> State:
    """A client as it is measured: BatchNorm by the statistics of the calibration set."""
    return repair(NETWORKS[name], state, [state], x, method="recalibrate", device="cpu")


def observe(name: str, state: State, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation per channel of every layer with a weight and a bias, measured by plain means."""
    module = NETWORKS[name]().double().eval()
    module.load_state_dict(state)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(layer_name: str, layer: nn.Module) -> None:
        def hook(layer: nn.Module, args: object, output: Tensor) -> None:
            first = isinstance(layer, nn.modules.batchnorm._NormBase | nn.modules.conv._ConvNd | nn.GroupNorm)
            first |= isinstance(layer, networks.OwnNorm)
            first |= type(layer) is not nn.LayerNorm and isinstance(layer, nn.LayerNorm)
            first |= isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 3
            rows = output.movedim(1 if first else -1, 0).flatten(1)
            seen[layer_name] = (rows.mean(1), rows.std(1, correction=0))

        layer.register_forward_hook(hook)

    for layer_name, layer in module.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        if "weight" in own and "bias" in own:
            watch(layer_name, layer)
    with torch.no_grad():
        module(x.double())
    return seen


def same(a: State, b: State) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@every_network
@pytest.mark.parametrize("seed", [0, 1])
def test_every_site_has_the_weighted_means_of_the_clients(name: str, seed: int, device: torch.device) -> None:
    states, x = clients_of(name, seed), inputs(seed=seed)
    repaired = repair(
        NETWORKS[name], average(states, WEIGHTS), states, x, weights=WEIGHTS, output_layer=True, device=device
    )
    shares = torch.tensor(WEIGHTS) / sum(WEIGHTS)
    observed = [observe(name, recalibrated(name, state, x), x) for state in states]
    got = observe(name, repaired, x)
    before = observe(name, average(states, WEIGHTS), x)
    assert got
    off = 0.0
    for layer, (mean, std) in got.items():
        goal_mean = sum(share * o[layer][0] for share, o in zip(shares, observed, strict=True))
        goal_std = sum(share * o[layer][1] for share, o in zip(shares, observed, strict=True))
        resolution = 1e-6 * mean.abs()  # of a float32 activation
        assert ((mean - goal_mean).abs() <= TOLERANCE * goal_std + resolution).all(), layer
        assert ((std - goal_std).abs() <= TOLERANCE * goal_std + resolution).all(), layer
        off = max(off, float(((before[layer][1] - goal_std).abs() / goal_std).max()))
    assert off > 0.05  # the merged network was in need of repair


@every_network
def test_batches_do_not_matter(name: str) -> None:
    states, x = clients_of(name), inputs()
    merged = average(states)
    whole = repair(NETWORKS[name], merged, states, x, device="cpu")
    labelled = ((part, torch.zeros(len(part))) for part in x.split([5, 12, 7]))
    parts = repair(NETWORKS[name], merged, states, labelled, device="cpu")
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5)


@every_network
def test_keys_shapes_dtypes_and_inputs_stay(name: str) -> None:
    states, x = clients_of(name), inputs()
    merged = average(states)
    kept_states, kept_merged, kept_x = copy.deepcopy(states), copy.deepcopy(merged), x.clone()
    repaired = repair(NETWORKS[name], merged, states, x, device="cpu")
    assert [(k, v.shape, v.dtype) for k, v in repaired.items()] == [(k, v.shape, v.dtype) for k, v in merged.items()]
    assert same(merged, kept_merged)
    assert all(same(*pair) for pair in zip(states, kept_states, strict=True))
    assert torch.equal(x, kept_x)
    own = {value.data_ptr() for value in repaired.values()}
    assert not own & {value.data_ptr() for value in merged.values()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_their_dtype(dtype: torch.dtype) -> None:
    states = [{key: value.to(dtype) for key, value in client(networks.mlp, seed).items()} for seed in range(2)]
    repaired = repair(networks.mlp, average(states), states, inputs(), device="cpu")
    assert {value.dtype for value in repaired.values()} == {dtype}


@every_network
def test_equal_endpoints_change_nothing(name: str) -> None:
    state, x = client(NETWORKS[name], 3), inputs()
    repaired = repair(NETWORKS[name], state, [state] * 3, x, weights=[1, 2, 3], output_layer=True, device="cpu")
    state = recalibrated(name, state, x)
    module = NETWORKS[name]().eval()
    module.load_state_dict(state)
    with torch.no_grad():
        before = module(x)
        module.load_state_dict(repaired)
        torch.testing.assert_close(module(x), before, rtol=1e-4, atol=1e-5)
    if not any(key.endswith("running_mean") for key in state):
        for key, value in state.items():
            torch.testing.assert_close(repaired[key], value, rtol=1e-6, atol=1e-6)


@every_network
def test_only_ratios_of_the_weights_matter_and_zero_leaves_out(name: str) -> None:
    states, x = clients_of(name), inputs()
    merged = average(states[:2], [1, 3])
    wanted = repair(NETWORKS[name], merged, states[:2], x, weights=[1, 3], device="cpu")
    scaled = repair(NETWORKS[name], merged, states[:2], x, weights=torch.tensor([256, 768]), device="cpu")
    broken = {key: value + math.nan if value.is_floating_point() else value for key, value in states[2].items()}
    ignored = repair(NETWORKS[name], merged, [*states[:2], broken], x, weights=[1, 3, 0], device="cpu")
    assert same(wanted, scaled)
    assert same(wanted, ignored)


def test_repair_follows_a_permutation_of_the_neurons() -> None:
    order, x = torch.randperm(16, generator=torch.Generator().manual_seed(0)), inputs()

    def permuted(state: State) -> State:
        moved = {"1.weight": state["1.weight"][order], "1.bias": state["1.bias"][order]}
        return state | moved | {"3.weight": state["3.weight"][:, order]}

    states = [client(networks.mlp, seed) for seed in range(3)]
    plain = repair(networks.mlp, average(states), states, x, device="cpu")
    moved = [permuted(state) for state in states]
    for key, value in repair(networks.mlp, average(moved), moved, x, device="cpu").items():
        torch.testing.assert_close(value, permuted(plain)[key], rtol=1e-5, atol=1e-6)


def test_the_pooled_method_includes_how_far_the_clients_lie_apart() -> None:
    states, x = clients_of("mlp"), inputs()
    repaired = repair(networks.mlp, average(states, WEIGHTS), states, x, weights=WEIGHTS, method="repair-pooled")
    got, goals = observe("mlp", repaired, x), [observe("mlp", state, x) for state in states]
    shares = torch.tensor(WEIGHTS, dtype=torch.float64)[:, None] / sum(WEIGHTS)
    for layer, (mean, std) in got.items():
        means, stds = (torch.stack([g[layer][i] for g in goals]) for i in range(2))
        wanted = (shares * (stds**2 + (means - (shares * means).sum(0)) ** 2)).sum(0).sqrt()
        torch.testing.assert_close(mean, (shares * means).sum(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(std, wanted, rtol=1e-4, atol=1e-6)


def norms(name: str, state: State) -> dict[str, Tensor]:
    sites = measure(NETWORKS[name], state, inputs(), device="cpu")
    return weight_norms(NETWORKS[name], state, sites)


@every_network
def test_bounded_weights_are_no_larger_than_a_clients_and_the_means_are_right(name: str) -> None:
    states, x = clients_of(name), inputs()
    merged = average(states, WEIGHTS)
    bounded, free = (
        repair(NETWORKS[name], merged, states, x, weights=WEIGHTS, method=method, device="cpu")
        for method in ("repair-bounded", "repair")
    )
    limits = largest(norms(name, state) for state in states)
    found = norms(name, bounded)
    assert all(bool((found[site] <= limits[site] * (1 + 1e-6)).all()) for site in limits)
    if any(bool((values > limits[site] * (1 + 1e-3)).any()) for site, values in norms(name, free).items()):
        assert not same(bounded, free)
    got, goals = observe(name, bounded, x), [observe(name, recalibrated(name, state, x), x) for state in states]
    for layer, (mean, _) in got.items():
        means, stds = (torch.stack([g[layer][i] for g in goals]) for i in range(2))
        shares = torch.tensor(WEIGHTS, dtype=torch.float64)[:, None] / sum(WEIGHTS)
        error = (mean - (shares * means).sum(0)).abs()
        assert bool((error <= 1e-3 * (1 + stds.amax(0))).all())


def test_repaired_networks_that_are_trained_on_do_not_grow() -> None:
    """Five clients, one class each, train from the repaired average, round after round."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, 3, 8, 8, generator=generator)
    labels = torch.arange(240) % 5
    x[torch.arange(240), 0, 0, labels] += 4

    def trained(state: State, part: Tensor) -> State:
        module = networks.mlp()
        module.load_state_dict(state)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[part]), labels[part]).backward()
            optimizer.step()
        return {key: value.detach().clone() for key, value in module.state_dict().items()}

    def after(rounds: int, method: str | None) -> float:
        torch.manual_seed(0)
        state: State = dict(networks.mlp().state_dict())
        for _ in range(rounds):
            states = [trained(state, torch.nonzero(labels == label)[:, 0]) for label in range(5)]
            state = average(states)
            if method is not None:
                state = repair(networks.mlp, state, states, x, method=method, device="cpu")  # type: ignore[arg-type]
        return math.sqrt(sum(float(value.square().sum()) for value in state.values()))

    plain, bounded, free = after(6, None), after(6, "repair-bounded"), after(6, "repair")
    assert bounded < 1.25 * plain
    assert free > 1.4 * plain  # what the bound is for


@pytest.mark.parametrize("method", ["repair", "recalibrate"])
def test_running_statistics_are_those_of_the_repaired_network(method: str) -> None:
    name = "resnet-batchnorm"
    states, x = clients_of(name), inputs()
    merged = average(states)
    repaired = repair(NETWORKS[name], merged, states, x, method=method, device="cpu")  # type: ignore[arg-type]
    module = NETWORKS[name]()
    module.load_state_dict(repaired)
    seen: dict[str, Tensor] = {}
    for layer_name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, args, key=layer_name: seen.__setitem__(key, args[0]))
    with torch.no_grad():
        module.eval()(x)
    assert len(seen) == 5
    for layer_name, value in seen.items():
        var, mean = torch.var_mean(value, (0, 2, 3), correction=1)
        torch.testing.assert_close(repaired[f"{layer_name}.running_mean"], mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(repaired[f"{layer_name}.running_var"], var, rtol=1e-4, atol=1e-4)
        counter = f"{layer_name}.num_batches_tracked"
        assert torch.equal(repaired[counter], merged[counter])
    changed = {key for key in merged if not torch.equal(merged[key], repaired[key])}
    if method == "recalibrate":
        assert changed == {key for key in merged if key.endswith(("running_mean", "running_var"))}


def test_a_batch_norm_without_parameters_is_recalibrated() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2))

    states, x = [client(build, seed) for seed in range(2)], inputs()
    repaired = repair(build, average(states), states, x, device="cpu")
    hidden = torch.nn.functional.linear(x.flatten(1), repaired["1.weight"], repaired["1.bias"])
    torch.testing.assert_close(repaired["2.running_mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(repaired["2.running_var"], hidden.var(0), rtol=1e-4, atol=1e-5)


def test_the_output_layer_is_corrected_only_on_request() -> None:
    states = [client(networks.mlp, seed) for seed in range(3)]
    merged = average(states)
    kept = repair(networks.mlp, merged, states, inputs(), output_layer=False, device="cpu")
    corrected = repair(networks.mlp, merged, states, inputs(), output_layer=True, device="cpu")
    assert torch.equal(kept["5.weight"], merged["5.weight"])
    assert not torch.equal(corrected["5.weight"], merged["5.weight"])
    assert not torch.equal(kept["3.weight"], merged["3.weight"])


def test_a_last_layer_without_a_bias_does_not_make_the_norm_before_it_the_output_layer() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.LayerNorm(8), nn.Linear(8, 5, bias=False))

    states = [client(build, seed) for seed in range(2)]
    merged = average(states)
    repaired = repair(build, merged, states, inputs(), output_layer=False, device="cpu")
    assert not torch.equal(repaired["2.weight"], merged["2.weight"])
    assert torch.equal(repaired["3.weight"], merged["3.weight"])


def test_the_module_is_left_alone() -> None:
    module = NETWORKS["resnet-batchnorm"]().train()
    module[0].weight.requires_grad_(False)
    called: list[int] = []
    module.register_forward_hook(lambda *_: called.append(1))
    kept = copy.deepcopy(module.state_dict())
    states = clients_of("resnet-batchnorm")
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs()), batch_size=6, shuffle=True)
    repair(module, average(states), states, loader, device="cpu")
    assert same(kept, module.state_dict())
    assert module.training
    assert all(layer.training for layer in module.modules())
    assert [p.requires_grad for p in module.parameters()].count(False) == 1
    assert all(p.grad is None for p in module.parameters())
    assert len(module._forward_hooks) == 1
    assert not any(layer._forward_hooks for layer in module.children())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_dead_channels_are_shifted_and_never_blown_up() -> None:
    states = [client(networks.mlp, seed) for seed in range(2)]
    for state in states:
        state["1.weight"][0] = 0  # constant in every client: the goal's spread is zero
        state["3.bias"].add_(1)
    merged = average(states)
    merged["1.weight"][1] = 0  # constant in the merged network only
    merged["3.weight"][2] *= 1e-9  # next to constant
    repaired = repair(networks.mlp, merged, states, inputs(), device="cpu")
    assert all(torch.isfinite(value).all() for value in repaired.values())
    assert torch.equal(repaired["1.weight"][1], merged["1.weight"][1])
    assert torch.equal(repaired["3.weight"][2], merged["3.weight"][2])
    got, goals = observe("mlp", repaired, inputs()), [observe("mlp", state, inputs()) for state in states]
    for layer, channel in (("1", 0), ("1", 1), ("3", 2)):
        wanted = (goals[0][layer][0][channel] + goals[1][layer][0][channel]) / 2
        assert got[layer][0][channel] == pytest.approx(float(wanted), abs=1e-5)


def test_rounding_is_not_taken_for_signal() -> None:
    states = [client(networks.mlp, seed) for seed in range(2)]
    for state in states:
        state["1.weight"][0] *= 0.01
    merged = average(states)
    merged["1.weight"][0] *= 0.02
    merged["1.bias"][0] = 1000  # the output varies by a few steps of float32
    repaired = repair(networks.mlp, merged, states, inputs(), device="cpu")
    assert torch.equal(repaired["1.weight"][0], merged["1.weight"][0])
    assert abs(float(repaired["1.bias"][0])) < 1


def test_layers_that_are_tied_frozen_or_unreached_stay_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.tied = nn.Linear(192, 192), nn.Linear(192, 192)
            self.tied.weight = self.first.weight
            self.frozen = nn.Linear(192, 7).requires_grad_(False)
            self.spare, self.plain, self.head = nn.Linear(3, 3), nn.Linear(7, 7), nn.Linear(7, 2)
            self.transposed = networks.OwnLinear(7)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.tied(torch.relu(self.first(x.flatten(1)))))
            hidden = self.transposed(torch.relu(self.frozen(hidden)))
            return self.head(torch.relu(self.plain(hidden)))

    states = [client(Odd, seed) for seed in range(2)]
    merged = average(states)
    with caplog.at_level(logging.INFO, logger="c2m3_fl"):
        repaired = repair(Odd, merged, states, inputs(), device="cpu")
    changed = {key.partition(".")[0] for key in merged if not torch.equal(merged[key], repaired[key])}
    assert changed == {"plain", "head"}
    for layer, reason in (
        ("first", "shares"),
        ("tied", "shares"),
        ("frozen", "frozen"),
        ("spare", "not call"),
        ("transposed", "fold"),
    ):
        assert any(f"'{layer}'" in m and reason in m for m in caplog.messages), layer


def test_a_layer_called_twice_is_corrected_over_both_calls() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.Sequential(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 6))
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            left, right = x.flatten(1).chunk(2, dim=1)
            return self.head(torch.relu(self.tower(left) - self.tower(right)))

    states = [client(Siamese, seed) for seed in range(3)]
    for calibration in (inputs(), list(inputs().split(7))):
        repaired = repair(Siamese, average(states), states, calibration, device="cpu")
        for layer in (0, 2):
            stats = []
            for state in [*states, repaired]:
                tower = Siamese().tower[: layer + 1]
                tower.load_state_dict({k.removeprefix("tower."): v for k, v in state.items()}, strict=False)
                left, right = inputs().flatten(1).chunk(2, dim=1)
                with torch.no_grad():
                    both = tower(torch.cat([left, right]))
                stats.append(torch.stack([both.mean(0), both.std(0, correction=0)]))
            torch.testing.assert_close(stats[-1], torch.stack(stats[:-1]).mean(0), rtol=1e-4, atol=1e-5)


def test_a_model_without_sites_stays_and_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 5, bias=False))

    states = [client(build, seed) for seed in range(2)]
    merged = average(states)
    assert same(repair(build, merged, states, inputs(), device="cpu"), merged)
    assert "stays as it is" in caplog.text


def test_the_same_inputs_give_the_same_bytes() -> None:
    states = clients_of("torchvision densenet")
    first, second = (
        repair(NETWORKS["torchvision densenet"], average(states), states, inputs(), device="cpu") for _ in range(2)
    )
    assert same(first, second)


def _error(**changes: object) -> str:
    states = [client(networks.mlp, seed) for seed in range(2)]
    options: dict[str, object] = {
        "module": networks.mlp,
        "merged": average(states),
        "endpoints": states,
        "calibration": inputs(),
        "device": "cpu",
    }
    with pytest.raises(RepairError) as raised:
        repair(**options | changes)  # type: ignore[arg-type]
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calibration": []}, ["calibration", "empty"]),
        ({"calibration": inputs()[:0]}, ["batch 0", "no example"]),
        ({"calibration": [inputs(), "x"]}, ["batch 1", "str"]),
        ({"calibration": [{"a": inputs(), "b": inputs()}]}, ["batch 0", "'a'", "forward takes"]),
        ({"calibration": 3}, ["calibration", "int"]),
        ({"calibration": torch.utils.data.TensorDataset(inputs())}, ["DataLoader"]),
        ({"calibration": [inputs(), inputs() / 0]}, ["batch 1", "NaN"]),
        ({"calibration": [inputs()[:, :2]]}, ["batch 0", "(24, 2, 8, 8)"]),
        ({"endpoints": []}, ["no client"]),
        ({"weights": [1]}, ["1 weight", "2 client"]),
        ({"weights": [1, -1]}, ["client 1", "-1"]),
        ({"weights": [math.nan, 1]}, ["client 0", "nan"]),
        ({"weights": [0, 0]}, ["zero"]),
        ({"method": "reset"}, ["'reset'", "'recalibrate'"]),
        ({"module": 3}, ["nn.Module"]),
        ({"merged": {}}, ["merged", "1.weight"]),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], words: list[str]) -> None:
    message = _error(**changes)
    assert all(word in message for word in words), message


def test_endpoints_that_do_not_fit_are_named() -> None:
    good, bad = client(networks.mlp, 0), client(networks.mlp, 1)
    other = bad | {"3.bias": torch.zeros(13)}
    message = _error(endpoints=[good, other])
    assert "endpoint 1" in message
    assert "'3.bias'" in message
    assert "(13,)" in message
    extra = bad | {"7.bias": torch.zeros(1)}
    assert "endpoint 0 has key(s) that the module does not know: 7.bias" in _error(endpoints=[extra, good])


def test_activations_that_are_not_finite_name_the_site_and_the_network() -> None:
    good, bad = client(networks.mlp, 0), client(networks.mlp, 1)
    bad["3.bias"][4] = math.inf
    message = _error(endpoints=[good, bad])
    assert "endpoint 1" in message
    assert "'3'" in message
    message = _error(merged=bad, endpoints=[good, good])
    assert "merged" in message
    assert "'3'" in message
