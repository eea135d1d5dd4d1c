"""Part of the weights: what is sent moves as far as what stays at home allows."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
import torch
from torch import Tensor, nn

from c2m3_fl.symmetry import PermutationSpec, SpecError, moved_share, shortcomings
from c2m3_fl.symmetry.prove import generic_state
from tests.symmetry.networks import NETWORKS, Residual


class LoRALinear(nn.Module):
    """A frozen weight with a trained low-rank addition, as PEFT lays it out."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.lora_A, self.lora_B = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.lora_B(self.lora_A(x))


def _backbone_and_head() -> nn.Module:
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8))
    return nn.Sequential(backbone, nn.ReLU(), nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)))


def _lora() -> nn.Module:
    return nn.Sequential(nn.Flatten(), LoRALinear(75, 9, 4), nn.GELU(), LoRALinear(9, 3, 2))


def _normed() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU())
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def _residual() -> nn.Module:
    branches = (Residual(nn.Conv2d(6, n, 1), nn.ReLU(), nn.Conv2d(n, 6, 1)) for n in (4, 5))
    return nn.Sequential(nn.Conv2d(3, 6, 3), *branches, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


Case = tuple[Callable[[], nn.Module], Callable[[str], bool], dict[str, int]]
CASES: dict[str, Case] = {
    "frozen backbone": (_backbone_and_head, lambda n: n.startswith("2."), {"2.0": 7}),
    "personal head": (_backbone_and_head, lambda n: not n.startswith("2."), {"0.0": 6}),
    "adapters": (_lora, lambda n: "lora" in n, {"1.lora_A": 4, "3.lora_A": 2}),
    "adapters and the last layer": (
        _lora,
        lambda n: "lora" in n or n.startswith("3."),
        {"1.lora_A": 4, "3.lora_A": 2},
    ),
    "BatchNorm at home": (_normed, lambda n: not n.startswith("0.1."), {"0.3": 5, "3.out": 7}),
    "all norms at home": (_normed, lambda n: not n.startswith(("0.1.", "4.")), {"0.3": 5}),
    "statistics at home": (_normed, lambda n: "running" not in n and "tracked" not in n, {"0.3": 5, "3.out": 7}),
    "counter at home": (_normed, lambda n: "tracked" not in n, {"0.0": 6, "0.3": 5, "3.out": 7}),
    "one branch at home": (_residual, lambda n: not n.startswith("2."), {"1.branch.0": 4}),
    "biases only": (_residual, lambda n: n.endswith("bias"), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_group_moves_if_all_that_it_orders_is_sent(name: str) -> None:
    torch.manual_seed(0)
    make, sent, groups = CASES[name]
    module, x = make().eval().double(), torch.randn(4, 3, 5, 5, dtype=torch.float64)
    whole = PermutationSpec.from_module(module, x)
    names = [n for n in module.state_dict() if sent(n)]
    spec = whole.restricted(names)
    assert dict(spec.groups) == groups
    assert list(spec.tensors) == names
    assert PermutationSpec.from_json(spec.to_json()) == spec
    _check_function(module, x, spec)
    reasons = {pin.what: pin.reason for pin in spec.pins}
    for group in set(whole.groups) - set(groups):
        concerned = any(group in axis.groups for name in names for axis in whole.tensors[name])
        assert ("not sent" in reasons.get(group, "")) == concerned
        assert not concerned or group in spec.explain()
    assert all(pin.tensor in names for pin in spec.pins if pin.tensor in whole.tensors)


def _check_function(module: nn.Module, x: Tensor, spec: PermutationSpec) -> None:
    state = generic_state(module, torch.Generator().manual_seed(1))
    module.load_state_dict(state)
    with torch.no_grad():
        before = module(x)
        sent = {name: state[name] for name in spec.tensors}
        moved = spec.apply(sent, spec.random(torch.Generator().manual_seed(2)))
        assert not spec.groups or any(not torch.equal(moved[name], sent[name]) for name in sent)
        module.load_state_dict({**state, **moved})
        torch.testing.assert_close(module(x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "frozen"])
def test_any_part_of_any_network_keeps_its_function(name: str) -> None:
    torch.manual_seed(0)
    module, inputs = NETWORKS[name].make().double(), NETWORKS[name].inputs()
    inputs = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
    whole = PermutationSpec.from_module(module, *inputs, prove=False)
    names = sorted(whole.tensors)
    for keep in (names[1:], names[:-1], names[::2], names[1::2], [n for n in names if not n.endswith("bias")]):
        spec = whole.restricted(keep)
        assert set(spec.tensors) == set(keep)
        # Everything that the whole spec moves together moves together or not at all.
        for group in spec.groups:
            carriers = {n for n, axes in whole.tensors.items() if any(group in axis.groups for axis in axes)}
            weights = {whole.tied.get(n, n) for n in keep}
            assert {whole.tied.get(n, n) for n in carriers} <= weights


def test_a_weight_sent_under_one_name_is_sent_under_all() -> None:
    network = NETWORKS["gpt"]
    whole = PermutationSpec.from_module(network.make(), *network.inputs(), prove=False)
    assert dict(whole.tied) == {"head.weight": "tokens.weight"}
    first, second = (_without(whole.tensors, name) for name in ("head.weight", "tokens.weight"))
    for names in (first, second):
        spec = whole.restricted(names)
        assert spec.groups == whole.groups
        assert not spec.tied
        assert moved_share(spec) == pytest.approx(moved_share(whole))
    assert "head.weight" not in whole.restricted(second).carried


def _without(names: Collection[str], left_out: str) -> list[str]:
    return [name for name in names if name != left_out]


def test_a_name_that_the_spec_does_not_list_is_an_error() -> None:
    spec = PermutationSpec.from_axes({"g": 2}, {"w": ("g",)})
    with pytest.raises(SpecError, match=r"'v' cannot be sent"):
        spec.restricted(["w", "v"])


def test_all_names_give_the_same_spec() -> None:
    spec = PermutationSpec.from_module(_normed(), torch.randn(2, 3, 5, 5), prove=False)
    assert spec.restricted(spec.tensors) == spec
    assert spec.restricted(spec.tensors).pins == spec.pins


def test_what_does_not_move_for_this_reason_is_told() -> None:
    spec = PermutationSpec.from_module(_lora(), torch.randn(2, 3, 5, 5), prove=False)
    assert not shortcomings(spec)
    told = shortcomings(spec.restricted([n for n in spec.tensors if "base" in n]))
    assert len(told) == 1
    assert "No permutation group" in told[0]
    assert "1.base (also orders '1.lora_B.weight' and 1 more, not sent)" in told[0]
    assert "3.lora_A" not in told[0]
