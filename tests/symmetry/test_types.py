"""Tensors of any type: half precision, complex numbers, integers, buffers that are infinite by design."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from c2m3_fl.symmetry import PermutationSpec
from c2m3_fl.symmetry.prove import largest_change, prepare


def _cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("given", [None, torch.float32, torch.float64])
def test_modules_of_any_floating_type_are_traced_and_proved(dtype: torch.dtype, given: torch.dtype | None) -> None:
    net, x = _cnn().to(dtype), torch.randn(2, 3, 6, 6, dtype=given or dtype)
    spec = PermutationSpec.from_module(net, x)
    assert spec.groups == {"0.out": 6, "5.out": 5}
    assert all(p.dtype == dtype for p in net.parameters())
    assert largest_change(spec, net, (x,), {}) < 1e-10
    moved = spec.apply(net.state_dict(), spec.random(torch.Generator().manual_seed(0)))
    assert {name: tensor.dtype for name, tensor in moved.items()} == {n: t.dtype for n, t in net.state_dict().items()}


def test_double_inputs_of_a_single_precision_module() -> None:
    assert PermutationSpec.from_module(_cnn(), torch.randn(2, 3, 6, 6, dtype=torch.float64)).groups


class Rotary(nn.Module):
    """Attention with a complex rotary table and a causal mask of -inf, both buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("table", torch.polar(torch.ones(5, 2), torch.arange(10.0).view(5, 2)))
        self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))

    def _rotate(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (2, 2, 2)).transpose(1, 2)
        return torch.view_as_real(torch.view_as_complex(x.float()) * self.table).flatten(-2).type_as(x)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self._rotate(self.q(x)), self._rotate(self.k(x))
        v = self.v(x).unflatten(-1, (2, 3)).transpose(1, 2)
        y = (q @ k.mT / 2 + self.mask).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def test_a_complex_table_stays_complex_and_a_mask_infinite() -> None:
    torch.manual_seed(0)
    net, x = Rotary(), torch.randn(3, 5, 4)
    table, mask = net.table.clone(), net.mask.clone()
    spec = PermutationSpec.from_module(net, x)
    assert sorted(spec.groups.values()) == [2, 2, 3]  # heads, pairs that the table turns at equal speed, values
    assert largest_change(spec, net, (x,), {}) < 1e-10
    trial = prepare(net, (x,), {}, torch.Generator().manual_seed(0))
    assert trial.state["table"].dtype == torch.complex128
    assert float(trial.state["table"].imag.abs().max()) > 0.1
    assert torch.equal(trial.state["mask"], mask.double())
    assert torch.equal(net.table, table)
    moved = spec.apply(net.state_dict(), spec.random(torch.Generator().manual_seed(0)))
    assert torch.equal(moved["table"], table)


def test_complex_parameters_move() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.out = nn.Parameter(torch.randn(6, 4, dtype=torch.cfloat)), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out((x.to(self.w.dtype) @ self.w.mH).abs())

    net, x = Complex(), torch.randn(2, 4)
    spec = PermutationSpec.from_module(net, x)
    assert spec.groups == {"w": 6}
    order = spec.random(torch.Generator().manual_seed(0))
    assert torch.equal(spec.apply(net.state_dict(), order)["w"], net.w.detach()[order["w"]])
    z = torch.randn(2, 4, dtype=torch.cfloat)
    assert PermutationSpec.from_module(net, z).groups == {"w": 6}


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, torch.float8_e4m3fn])
def test_a_buffer_of_any_type_moves_to_the_bit(dtype: torch.dtype) -> None:
    spec = PermutationSpec.from_axes({"g": 5}, {"w": ("g", 2)})
    bits = torch.randint(0, 127, (5, 2), dtype=torch.uint8)
    tensor = bits.bool() if dtype is torch.bool else bits.to(dtype)
    order = torch.tensor([3, 1, 4, 0, 2])
    moved = spec.apply({"w": tensor}, {"g": order})["w"]
    assert moved.dtype == dtype
    assert torch.equal(moved.double(), tensor.double()[order])


def test_large_integers_and_empty_buffers_stay_as_they_are() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _cnn()
            self.register_buffer("count", torch.tensor(2**62 + 1))
            self.register_buffer("lowest", torch.tensor(float("inf")))
            self.register_buffer("nothing", torch.zeros(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    net = Counting()
    spec = PermutationSpec.from_module(net, torch.randn(2, 3, 6, 6))
    assert spec.groups == {"net.0": 6, "net.5": 5}
    moved = spec.apply(net.state_dict(), spec.random(torch.Generator().manual_seed(0)))
    assert int(moved["count"]) == 2**62 + 1
    assert float(moved["lowest"]) == float("inf")


def test_outputs_that_are_infinite_by_design_are_compared_elsewhere() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.first(x))).masked_fill(torch.tensor([False, True, False]), float("-inf"))

    assert PermutationSpec.from_module(Masked(), torch.randn(2, 4)).groups == {"first": 6}
    wrong = PermutationSpec.from_axes(
        {"a": 6},
        {"first.weight": ("a", 4), "first.bias": ("a",), "out.weight": (3, 6), "out.bias": (3,)},
    )
    assert largest_change(wrong, Masked(), (torch.randn(2, 4),), {}) > 1e-3


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_fake_quantisation_moves_with_its_scales() -> None:
    quantisation = pytest.importorskip("torch.ao.quantization")
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    net.qconfig = quantisation.get_default_qat_qconfig("fbgemm")
    quantisation.prepare_qat(net.train(), inplace=True)
    x = torch.randn(16, 4)
    net(x)
    spec = PermutationSpec.from_module(net, x)
    assert spec.groups == {"0.out": 6}
    assert "0.out" in spec.tensors["0.weight_fake_quant.scale"][0].groups
