"""What `PermutationSpec.from_module` promises beyond finding groups."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2m3_fl.symmetry.groups import NOT_REACHED
from c2m3_fl.symmetry.prove import largest_change, prove
from c2m3_fl.symmetry.spec import PermutationSpec, SpecError
from tests.symmetry.networks import NETWORKS, Function


@torch.library.custom_op("c2m3_tests::weighted", mutates_args=())
def _weighted(x: Tensor) -> Tensor:
    return x * torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)


@_weighted.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("c2m3_tests::opaque", mutates_args=())
def _opaque(x: Tensor) -> Tensor:
    return x.clone()


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_an_unknown_operator_pins_what_it_touches_and_nothing_else() -> None:
    net = Function(
        lambda self, x: self.out(torch.relu(self.second(_weighted(torch.relu(self.first(x)))))),
        first=nn.Linear(4, 6),
        second=nn.Linear(6, 5),
        out=nn.Linear(5, 3),
    )
    spec = PermutationSpec.from_module(net, torch.randn(2, 4))
    assert dict(spec.groups) == {"second": 5}
    reasons = {pin.what: pin.reason for pin in spec.pins}
    assert "c2m3_tests::weighted" in reasons["first.weight[0]"]
    assert any("c2m3_tests::weighted" in pin.reason and pin.what == "the network" for pin in spec.pins)


def test_an_operator_that_cannot_be_traced_is_an_error_that_says_so() -> None:
    net = Function(lambda self, x: self.out(_opaque(self.first(x))), first=nn.Linear(4, 6), out=nn.Linear(6, 3))
    with pytest.raises(SpecError, match=r"cannot be traced.*from_axes"):
        PermutationSpec.from_module(net, torch.randn(2, 4))


def test_control_flow_that_depends_on_data_is_an_error_that_says_so() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.out(y if y.sum() > 0 else y.flip(-1))

    net = Function(forward, first=nn.Linear(4, 6), out=nn.Linear(6, 3))
    with pytest.raises(
        SpecError,
        match=r"control flow depends on the values of tensors, at .*test_from_module.py:\d+: `return self.out\(y if",
    ):
        PermutationSpec.from_module(net, torch.randn(2, 4))


def test_control_flow_inside_the_graph_pins_what_it_touches() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.cond(x.sum() > 0, lambda z: z.flip(-1), lambda z: z * 2, (self.first(x),))
        return self.out(torch.relu(self.second(y)))

    net = Function(forward, first=nn.Linear(4, 6), second=nn.Linear(6, 5), out=nn.Linear(5, 3))
    assert dict(PermutationSpec.from_module(net, torch.randn(2, 4)).groups) == {"second": 5}


def test_sizes_that_depend_on_data_pin_what_they_touch() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.out(torch.relu(self.second(y))) + y[y > 0.1].sum()

    net = Function(forward, first=nn.Linear(4, 6), second=nn.Linear(6, 5), out=nn.Linear(5, 3))
    assert dict(PermutationSpec.from_module(net, torch.randn(2, 4)).groups) == {"second": 5}


def test_no_grad_and_checkpoints_inside_a_network_are_seen_through() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.relu(self.first(x))
        return self.out(torch.utils.checkpoint.checkpoint(self.second, y, use_reentrant=False))

    net = Function(forward, first=nn.Linear(4, 6), second=nn.Linear(6, 5), out=nn.Linear(5, 3))
    spec = PermutationSpec.from_module(net, torch.randn(2, 4))
    assert dict(spec.groups) == {"first": 6, "second": 5}


def test_tied_weights_have_the_same_axes_and_the_second_name_is_carried() -> None:
    spec = PermutationSpec.from_module(NETWORKS["gpt"].make(), *NETWORKS["gpt"].inputs())
    assert spec.tensors["tokens.weight"] == spec.tensors["head.weight"]
    assert "head.weight" in spec.carried
    assert "tokens.weight" not in spec.carried
    assert spec.tensors["tokens.weight"][1].groups == {"tokens"}


def test_statistics_are_carried_and_buffers_outside_the_state_dict_pin() -> None:
    class Net(nn.Module):
        def __init__(self, persistent: bool) -> None:
            super().__init__()
            self.first, self.norm, self.out = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
            self.register_buffer("scale", torch.arange(6.0), persistent=persistent)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(self.first(x)) * self.scale)

    kept = PermutationSpec.from_module(Net(True), torch.randn(2, 4))
    assert dict(kept.groups) == {"first": 6}
    assert kept.carried == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "scale"}
    assert not PermutationSpec.from_module(Net(False), torch.randn(2, 4)).groups


def test_tensors_that_share_memory_are_pinned() -> None:
    net = _mlp()
    net[2].bias = nn.Parameter(net[0].bias.detach()[:5])
    assert not {"0.out", "2.out"} & set(PermutationSpec.from_module(net, torch.randn(2, 4)).groups)


def test_parameters_without_use_are_pinned() -> None:
    net = Function(
        lambda self, x: self.out(self.first(x)), first=nn.Linear(4, 6), out=nn.Linear(6, 3), idle=nn.Linear(6, 6)
    )
    spec = PermutationSpec.from_module(net, torch.randn(2, 4))
    assert dict(spec.groups) == {"first": 6}
    assert any(pin.what == "idle.weight" and pin.reason == NOT_REACHED for pin in spec.pins)


def test_heads_that_run_in_training_only_move_along() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
            self.aux = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = torch.relu(self.first(x))
            return (self.out(y), self.aux(y)) if self.training else (self.out(y),)

    net, x = Auxiliary(), torch.randn(2, 4)
    spec = PermutationSpec.from_module(net, x)
    assert dict(spec.groups) == {"first": 6, "aux.0": 5}
    before = net.train()(x)
    net.load_state_dict(spec.apply(net.state_dict(), spec.random(torch.Generator().manual_seed(0))))
    for a, b in zip(before, net(x), strict=True):
        torch.testing.assert_close(a, b)


def test_the_module_and_the_random_state_stay_as_they_were() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Sequential(nn.Linear(6, 3)).eval()).train()
    modes = [child.training for child in net.modules()]
    before, x = copy.deepcopy(net.state_dict()), torch.randn(4, 4)
    given = x.clone()
    random.seed(0)
    states = torch.get_rng_state(), random.getstate(), torch.backends.mha.get_fastpath_enabled()
    PermutationSpec.from_module(net, x)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), torch.backends.mha.get_fastpath_enabled())
    assert [child.training for child in net.modules()] == modes
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(given, x)


def test_two_traces_are_equal() -> None:
    net, x = NETWORKS["llama"].make(), NETWORKS["llama"].inputs()
    first, second = (PermutationSpec.from_module(net, *x) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert PermutationSpec.from_json(first.to_json()) == first


def test_keyword_arguments_reach_the_forward() -> None:
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 3, 8)
    spec = PermutationSpec.from_module(net, x, x, x, kwargs={"need_weights": False})
    assert sorted(spec.groups.values()) == [2, 4, 4]


WRONG = PermutationSpec.from_axes(
    {"a": 6, "b": 5},
    # The next layer's input axis misses the group: permuting `a` changes the function.
    {
        "0.weight": ("a", 4),
        "0.bias": ("a",),
        "2.weight": ("b", 6),
        "2.bias": ("b",),
        "4.weight": (3, "b"),
        "4.bias": (3,),
    },
)


def test_the_proof_pins_a_wrong_group_and_keeps_the_right_one() -> None:
    spec = prove(WRONG, _mlp(), (torch.randn(2, 4),), {})
    assert dict(spec.groups) == {"b": 5}
    assert spec.pins[0].what == "a"
    assert "failed the proof" in spec.pins[0].reason
    assert largest_change(spec, _mlp(), (torch.randn(2, 4),), {}) < 1e-12


def test_the_proof_sees_through_fresh_norms_and_zeros() -> None:
    """At their initial values the norm's parameters are all equal and the branch contributes nothing."""
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    nn.init.zeros_(net[0].bias)
    right = PermutationSpec.from_module(net, torch.randn(2, 4), prove=False)
    for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        fixed = {**right.tensors, name: right.pinned({"0.out": ""}).tensors[name]}
        wrong = PermutationSpec(right.groups, fixed, right.carried)
        assert not prove(wrong, net, (torch.randn(2, 4),), {}).groups, name


def test_groups_that_hold_only_together_do_not_both_survive() -> None:
    """Two names for one symmetry: each alone is wrong, and only equal permutations of both would do."""
    axes = {"0.weight": ("a", 4), "0.bias": ("a",), "1.weight": (3, "b"), "1.bias": (3,)}
    spec = PermutationSpec.from_axes({"a": 6, "b": 6}, axes)
    assert not prove(spec, nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), (torch.randn(2, 4),), {}).groups


def test_outputs_that_are_not_finite_are_an_error() -> None:
    net = Function(lambda self, x: self.out(self.first(x)) / 0, first=nn.Linear(4, 6), out=nn.Linear(6, 3))
    with pytest.raises(SpecError, match="not finite"):
        PermutationSpec.from_module(net, torch.randn(2, 4))


def test_state_that_is_no_tensor_is_an_error() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> str:
            return "version 2"

    with pytest.raises(SpecError, match="_extra_state"):
        PermutationSpec.from_module(Extra(4, 3), torch.randn(2, 4))
