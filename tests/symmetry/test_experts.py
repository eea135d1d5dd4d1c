"""Mixtures of experts, however their tokens are routed, and low-rank adapters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl.symmetry import PermutationSpec
from c2m3_fl.symmetry.prove import largest_change


class Experts(nn.Module):
    """Five experts on a stream of eight, two of them for each token."""

    def __init__(self, route: Callable[[Experts, Tensor, Tensor, Tensor], Tensor], inner: int, modules: bool) -> None:
        super().__init__()
        self.route = route
        self.embed, self.router, self.out = nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(8, 3)
        if modules:
            self.each = nn.ModuleList(
                nn.Sequential(nn.Linear(8, inner), nn.ReLU(), nn.Linear(inner, 8)) for _ in range(5)
            )
        else:
            self.up, self.down = nn.Parameter(torch.randn(5, 8, inner)), nn.Parameter(torch.randn(5, inner, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.embed(x))
        gates, chosen = self.router(h).softmax(-1).topk(2, dim=-1)
        return self.out(h + self.route(self, h, gates, chosen))


def _gathered(s: Experts, h: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    y = torch.einsum("nd,nkdh->nkh", h, s.up[chosen]).relu()
    return (torch.einsum("nkh,nkhd->nkd", y, s.down[chosen]) * gates[..., None]).sum(1)


def _selected(s: Experts, h: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    up = s.up.index_select(0, chosen.flatten()).view(*chosen.shape, 8, -1)
    y = (h[:, None, None] @ up).relu()[:, :, 0]
    return (torch.einsum("nkh,nkhd->nkd", y, s.down[chosen]) * gates[..., None]).sum(1)


def _scattered(s: Experts, h: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    y = torch.einsum("nd,edh->neh", h, s.up).relu()
    y = torch.einsum("neh,ehd->ned", y, s.down)
    return (y * torch.zeros(len(h), 5, dtype=h.dtype).scatter(1, chosen, gates)[..., None]).sum(1)


def _dispatched(s: Experts, h: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    one = functional.one_hot(chosen[:, 0], 5).to(h.dtype)
    slot = functional.one_hot(((one.cumsum(0) - 1) * one).long().clamp(0, 6), 7).to(h.dtype)
    dispatch = one[..., None] * slot
    y = torch.einsum("nec,nd->ecd", dispatch, h)
    y = torch.einsum("ech,ehd->ecd", torch.einsum("ecd,edh->ech", y, s.up).relu(), s.down)
    return torch.einsum("ecd,nec->nd", y, dispatch) * gates[:, :1]


def _grouped(s: Experts, h: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    order = chosen.flatten().argsort(stable=True)
    ends = functional.one_hot(chosen.flatten(), 5).sum(0).cumsum(0).to(torch.int32)
    y = torch._grouped_mm(h.repeat_interleave(2, 0)[order], s.up, offs=ends).relu()
    y = torch._grouped_mm(y, s.down, offs=ends)
    back = torch.zeros_like(y).index_copy(0, order, y)
    return (back.view(*chosen.shape, 8) * gates[..., None]).sum(1)


def _stacked(s: Experts, h: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    y = torch.stack([expert(h) for expert in s.each], 1)
    return (y.gather(1, chosen[..., None].expand(-1, -1, 8)) * gates[..., None]).sum(1)


def _added(s: Experts, h: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, expert in enumerate(s.each):
        rows, places = torch.where(chosen == number)
        out.index_add_(0, rows, expert(h[rows]) * gates[rows, places, None])
    return out


STACKED = {
    "weights gathered": _gathered,
    "weights selected": _selected,
    "gates scattered": _scattered,
    "tokens dispatched": _dispatched,
    "grouped products": _grouped,
}
MODULES = {"outputs gathered": _stacked, "tokens picked and added": _added}


@pytest.mark.parametrize("name", [*STACKED, *MODULES])
def test_the_stream_and_the_experts_hidden_units_are_found(name: str) -> None:
    if name == "grouped products" and not hasattr(torch, "_grouped_mm"):
        pytest.skip("this torch has no grouped products")
    torch.manual_seed(0)
    inner = 16 if name == "grouped products" else 6  # which want rows of whole 16 bytes
    net = Experts((STACKED | MODULES)[name], inner, name in MODULES)
    x = torch.randn(7, 4)
    spec = PermutationSpec.from_module(net, x, prove=False)
    assert sorted(spec.groups.values()) == sorted([8, *[inner] * (5 if name in MODULES else 1)])
    assert "embed" in spec.groups
    assert largest_change(spec, net, (x,), {}) < (1e-5 if name == "grouped products" else 1e-10)
    assert PermutationSpec.from_module(net, x).groups == spec.groups


def test_adapters_written_with_transposes_have_their_rank_axis() -> None:
    class LoRA(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4), requires_grad=False)
            self.A, self.B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w.T + (x @ self.A.T) @ self.B.T

    spec = PermutationSpec.from_module(LoRA(), torch.randn(5, 4))
    assert spec.groups == {"A": 2}
    sent = spec.restricted(["A", "B"])
    assert sent.groups == {"A": 2}
    assert [str(axis) for axis in sent.tensors["B"]] == ["3", "A"]
