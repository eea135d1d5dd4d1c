"""One network, a hidden layer of six neurons between two products, written in many ways: the layer is always found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl.symmetry.prove import largest_change
from c2m3_fl.symmetry.spec import PermutationSpec


class Layer(nn.Module):
    """Hidden activations h (5, 6) with weights w (3, 6), wt (6, 3), a vector v (6) and a function of them and h."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(4, 6)
        self.w, self.wt = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(6, 3))
        self.v, self.b = nn.Parameter(torch.rand(6) + 0.1), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, torch.relu(self.first(x)))


Case = Callable[[Any, Tensor], Any]
TRANSPOSES: dict[str, Case] = {
    ".T": lambda s, h: h @ s.w.T,
    ".t()": lambda s, h: h @ s.w.t(),
    ".mT": lambda s, h: h @ s.w.mT,
    ".H": lambda s, h: h @ s.w.H,
    ".mH": lambda s, h: h @ s.w.mH,
    "adjoint": lambda s, h: h @ s.w.adjoint(),
    "torch.transpose": lambda s, h: h @ torch.transpose(s.w, 0, 1),
    "swapaxes": lambda s, h: h @ s.w.swapaxes(0, 1),
    "swapdims": lambda s, h: h @ s.w.swapdims(0, 1),
    "permute": lambda s, h: h @ s.w.permute(1, 0),
    "movedim": lambda s, h: h @ torch.movedim(s.w, 0, 1),
    "moveaxis": lambda s, h: h @ torch.moveaxis(s.w, 0, 1),
    "of both": lambda s, h: (s.wt.T @ h.T).T,
    "of the left": lambda s, h: torch.matmul(s.w, h.T).T,
    "of a vector": lambda s, h: h @ s.v.t(),
    "through a flat view": lambda s, h: h @ torch.ravel(s.w).view(3, 6).T,
    "through a split axis": lambda s, h: h @ s.w.unflatten(0, (3, 1)).permute(2, 0, 1).flatten(1),
}
PRODUCTS: dict[str, Case] = {
    "F.linear": lambda s, h: functional.linear(h, s.w, s.b),
    "mm": lambda s, h: torch.mm(h, s.wt),
    "bmm": lambda s, h: torch.bmm(h[None], s.wt[None]),
    "matmul with a batch": lambda s, h: h[None] @ s.wt[None],
    "linalg.matmul": lambda s, h: torch.linalg.matmul(h, s.wt),
    "multi_dot": lambda s, h: torch.linalg.multi_dot([h, s.wt, s.w]) @ s.wt,
    "chain": lambda s, h: torch.chain_matmul(h, s.wt, s.w) @ s.wt,
    "addmm": lambda s, h: torch.addmm(s.b, h, s.w.T),
    "addbmm": lambda s, h: torch.addbmm(s.b.expand(5, 3), h[None], s.w.T[None]),
    "baddbmm": lambda s, h: torch.baddbmm(s.b.expand(1, 5, 3), h[None], s.wt[None]),
    "addmv": lambda s, h: torch.addmv(h.sum(1), h, s.v),
    "addr": lambda s, h: torch.addr(h, s.b.new_ones(5), s.v) @ s.wt,
    "mv": lambda s, h: torch.mv(h, s.v),
    "dot": lambda s, h: torch.dot(h[0], s.v),
    "vdot": lambda s, h: torch.vdot(h[0], s.v),
    "vecdot": lambda s, h: torch.linalg.vecdot(h, s.v),
    "inner": lambda s, h: torch.inner(h, s.w),
    "outer": lambda s, h: torch.outer(h[0], s.v).sum(0) @ s.wt,
    "ger": lambda s, h: torch.ger(h[0], s.v).sum(0) @ s.wt,
    "kron": lambda s, h: torch.kron(h, s.b.new_ones(2, 1)) @ s.wt,
    "tensordot": lambda s, h: torch.tensordot(h, s.wt, 1),
    "tensordot of named axes": lambda s, h: torch.tensordot(h, s.w, dims=([1], [1])),
    "einsum": lambda s, h: torch.einsum("nk,ok->no", h, s.w),
    "einsum without an arrow": lambda s, h: torch.einsum("nk,ok", h, s.w),
    "einsum with an ellipsis": lambda s, h: torch.einsum("...k,ok->...o", h, s.w),
    "einsum of three": lambda s, h: torch.einsum("nk,k,ok->no", h, s.v, s.w),
    "sum of a product": lambda s, h: (h[:, None] * s.w).sum(-1),
    "convolution": lambda s, h: functional.conv1d(h[..., None], s.w[..., None])[..., 0],
    "bilinear": lambda s, h: functional.bilinear(h, h, torch.einsum("ok,ol->okl", s.w, s.w)),
    "diagonal matrix": lambda s, h: h @ torch.diag(s.v) @ s.wt,
    "embedded diagonal": lambda s, h: h @ torch.diag_embed(s.v) @ s.wt,
    "diagonal of a product": lambda s, h: h * (s.wt @ s.w).diagonal() @ s.wt,
    "trace": lambda s, h: h @ s.wt * (s.wt @ s.w).trace(),
    "tied there and back": lambda s, h: h @ s.w.T @ s.w @ s.wt,
    "distances": lambda s, h: torch.cdist(h, s.w),
    "distance to one": lambda s, h: functional.pairwise_distance(h, s.v[None]),
    "cosine similarity": lambda s, h: functional.cosine_similarity(h[:, None], s.w, dim=-1),
    "normalised": lambda s, h: functional.linear(functional.normalize(h), functional.normalize(s.w)),
    "renorm": lambda s, h: torch.renorm(h, 2, 0, 1.0) @ s.wt,
    "linalg.norm": lambda s, h: h / (torch.linalg.norm(h, dim=-1, keepdim=True) + 1) @ s.wt,
}


def _autocast(s: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (h @ s.wt).float() + functional.layer_norm(h, (6,), s.v).sum()


def _rms_norm(s: Any, h: Tensor) -> Tensor:
    x = h.to(torch.float32)
    return (s.v * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(h.dtype)) @ s.wt


CASTS: dict[str, Case] = {
    "float": lambda s, h: functional.linear(h.float(), s.w.float()).to(h.dtype),
    "double": lambda s, h: functional.linear(h.double(), s.w.double()).to(h.dtype),
    "half": lambda s, h: functional.linear(h.half(), s.w.half()).to(h.dtype),
    "bfloat16": lambda s, h: functional.linear(h.to(torch.bfloat16), s.w.to(torch.bfloat16)).to(h.dtype),
    "type_as": lambda s, h: functional.linear(h.half().type_as(s.w), s.w),
    "type": lambda s, h: functional.linear(h.type(torch.float64), s.w.type(torch.float64)),
    "to another tensor's": lambda s, h: h.to(s.w) @ s.w.T,
    "softmax in single precision": lambda s, h: h.softmax(-1, dtype=torch.float32).to(h.dtype) @ s.wt,
    "autocast": _autocast,
    "RMSNorm in single precision": _rms_norm,
}

_ROWS = torch.tensor([0, 1, 2, 2, 1])


def _written(s: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[torch.tensor([0, 1])] = s.v
    return h @ s.wt


def _written_by_mask(s: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[h.sum(1) > 0.5] = s.v
    h[h > 2] = 0.5
    return h @ s.wt


def _written_through_a_view(s: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[1:3].index_copy_(0, torch.tensor([1, 0]), s.v.expand(2, 6))
    return h @ s.wt


INDEXED: dict[str, Case] = {
    "rows": lambda s, h: h[_ROWS] @ s.wt,
    "index_select": lambda s, h: h.index_select(0, _ROWS) @ s.wt,
    "gather": lambda s, h: h.gather(0, _ROWS[:, None].expand(5, 6)) @ s.wt,
    "take_along_dim": lambda s, h: torch.take_along_dim(h, _ROWS[:, None], 0) @ s.wt,
    "index_add": lambda s, h: torch.zeros_like(h).index_add(0, _ROWS, h) @ s.wt,
    "index_add in place": lambda s, h: h.clone().index_add_(0, _ROWS, h) @ s.wt,
    "index_copy": lambda s, h: torch.zeros_like(h).index_copy(0, _ROWS.argsort(), h) @ s.wt,
    "index_fill": lambda s, h: h.index_fill(0, torch.tensor([1]), 0.3) @ s.wt,
    "index_put": lambda s, h: torch.zeros_like(h).index_put((_ROWS,), h, accumulate=True) @ s.wt,
    "two indices": lambda s, h: h.unflatten(0, (5, 1))[_ROWS, torch.zeros_like(_ROWS)] @ s.wt,
    "scatter_add": lambda s, h: torch.zeros_like(h).scatter_add(0, _ROWS[:, None].expand(5, 6), h) @ s.wt,
    "scatter_reduce": lambda s, h: torch.zeros_like(h).scatter_reduce(0, _ROWS[:, None].expand(5, 6), h, "amax") @ s.wt,
    "scatter": lambda s, h: torch.zeros_like(h).scatter(0, _ROWS.argsort()[:, None].expand(5, 6), h) @ s.wt,
    "assigned rows": _written,
    "assigned by a mask": _written_by_mask,
    "assigned through a view": _written_through_a_view,
    "rows of a mask": lambda s, h: (h[h.sum(1) > -1] @ s.wt).sum(0),
    "rows where": lambda s, h: (h[torch.where(h.sum(1) > -1)[0]] @ s.wt).sum(0),
    "masks combined": lambda s, h: h * ((h > 0) & (h < 1)) @ s.wt,
    "embedding": lambda s, h: functional.embedding(_ROWS, h) @ s.wt,
    "embedding bag": lambda s, h: functional.embedding_bag(_ROWS[None], h) @ s.wt,
    "sliding windows": lambda s, h: h.unfold(0, 2, 1).sum(-1) @ s.wt,
}


def _image(h: Tensor) -> Tensor:
    return h[:, :, None, None] * torch.arange(1, 17, dtype=h.dtype).view(4, 4) / 16


SHAPES: dict[str, Case] = {
    "hstack": lambda s, h: torch.hstack([h, h]) @ torch.vstack([s.wt, s.wt]),
    "column_stack": lambda s, h: torch.column_stack([h, h]) @ torch.cat([s.wt, s.wt]),
    "dstack": lambda s, h: torch.dstack([h, h]).sum(-1) @ s.wt,
    "meshgrid": lambda s, h: torch.meshgrid(h[0], s.v, indexing="ij")[1].sum(0) @ s.wt,
    "squeeze of two": lambda s, h: h[None, None].squeeze((0, 1)) @ s.wt,
    "unfold and fold": lambda s, h: (
        functional.fold(functional.unfold(_image(h), 2, stride=2), (4, 4), 2, stride=2).mean((2, 3)) @ s.wt
    ),
    "grid_sample": lambda s, h: (
        functional.grid_sample(_image(h), h.new_zeros(5, 2, 2, 2), align_corners=False).mean((2, 3)) @ s.wt
    ),
    "max_unpool": lambda s, h: (
        functional.max_unpool2d(*functional.max_pool2d(_image(h), 2, return_indices=True), 2).mean((2, 3)) @ s.wt
    ),
    "Fourier transform of rows": lambda s, h: torch.fft.fft(h, dim=0).real @ s.wt,
    "back from frequencies": lambda s, h: torch.fft.irfft(torch.fft.rfft(h, dim=0), n=5, dim=0) @ s.wt,
    "complex": lambda s, h: torch.view_as_real(torch.complex(h, 2 * h) * 1j)[..., 0] @ s.wt,
    "phases": lambda s, h: torch.view_as_complex(torch.stack([h, s.v.expand(5, 6)], -1)).abs() @ s.wt,
    "value checks": lambda s, h: torch._assert_async((h > -1).all()) or h @ s.wt,
}
DRAWS: dict[str, Case] = {
    "dropout at all times": lambda s, h: functional.dropout(h, 0.5, True) @ s.wt,
    "dropout of whole channels": lambda s, h: functional.dropout1d(h[..., None], 0.5, True)[..., 0] @ s.wt,
    "noise added": lambda s, h: (h + torch.randn_like(h)) @ s.wt,
    "noise of one row": lambda s, h: (h + torch.rand(6)) @ s.wt,
    "reparametrisation": lambda s, h: (h + torch.randn_like(h) * torch.exp(0.5 * s.v)) @ s.wt,
    "normal around": lambda s, h: torch.normal(h, 1.0) @ s.wt,
    "normal in place": lambda s, h: (h + torch.empty_like(h).normal_(1.0, 2.0)) @ s.wt,
    "bernoulli": lambda s, h: torch.bernoulli(torch.sigmoid(h)) @ s.wt,
    "Gumbel softmax": lambda s, h: functional.gumbel_softmax(h) @ s.wt,
    "stochastic depth": lambda s, h: h * torch.empty(5, 1).bernoulli_(0.5) @ s.wt,
}
FOUND = TRANSPOSES | PRODUCTS | CASTS | INDEXED | SHAPES | DRAWS


@pytest.mark.parametrize("name", FOUND)
def test_the_hidden_layer_is_found(name: str) -> None:
    torch.manual_seed(0)
    net, x = Layer(FOUND[name]), torch.randn(5, 4)
    spec = PermutationSpec.from_module(net, x, prove=False)
    assert spec.groups.get("first") == 6, spec.explain()
    assert largest_change(spec, net, (x,), {}) < 1e-10
    assert PermutationSpec.from_module(net, x).groups == spec.groups


def _noise_in_two_orders(s: Any, h: Tensor) -> Tensor:
    noise = torch.randn(6)
    return (h + noise) @ s.wt + (noise * torch.arange(6.0)).sum()


def _mask_in_two_orders(s: Any, h: Tensor) -> Tensor:
    mask = functional.dropout(torch.ones_like(h), 0.5, True)
    return (h * mask) @ s.wt + (mask * torch.arange(6.0)).sum()


def _column_overwritten(s: Any, h: Tensor) -> Tensor:
    y = h.clone()
    y.index_copy_(1, torch.tensor([0]), h[:, 5:])
    return y @ s.wt


def _half_masked(s: Any, h: Tensor) -> Tensor:
    mask = torch.zeros(6)
    mask[:3] = 1.0
    mask[0].fill_(2.0)
    return (h * mask) @ s.wt


PINNED: dict[str, Case] = {
    "noise in an order": lambda s, h: (h + torch.randn_like(h).cumsum(1)) @ s.wt,
    "one noise for two orders": _noise_in_two_orders,
    "dropout of ones, twice": _mask_in_two_orders,
    "columns": lambda s, h: h[:, [1, 0, 2, 3, 4, 5]] @ s.wt,
    "columns written": lambda s, h: torch.zeros_like(h).index_add(1, torch.tensor([0, 1, 2, 2, 1, 5]), h) @ s.wt,
    "gathered columns": lambda s, h: h.gather(1, torch.tensor([[1, 0, 2, 3, 4, 5]] * 5)) @ s.wt,
    "part of a gather": lambda s, h: h.gather(0, torch.zeros(1, 4, dtype=torch.long)) @ s.wt[:4],
    "scattered columns": lambda s, h: torch.zeros_like(h).scatter(1, torch.tensor([[1, 0, 2, 3, 4, 5]] * 5), h) @ s.wt,
    "elements by a mask": lambda s, h: h[h > -1].view(5, 6)[:, :3] @ s.wt[:3],
    "elements written by a mask": lambda s, h: h.masked_scatter(h > 0.1, h.flip(1)) @ s.wt,
    "values written by a mask": lambda s, h: h.index_put((h > -1,), h.new_ones(30).cumsum(0)) @ s.wt,
    "Fourier transform": lambda s, h: torch.fft.fft(h, dim=1).real @ s.wt,
    "pairs as complex numbers": lambda s, h: torch.view_as_complex(h.unflatten(1, (3, 2))).real @ s.wt[:3],
    "off the diagonal": lambda s, h: h[:, :5] * (s.wt @ s.w).diagonal(1) @ s.wt[:5],
    "taken by flat index": lambda s, h: h @ torch.take(s.w, torch.arange(18)).view(3, 6).T,
    "strided by hand": lambda s, h: h @ s.w.as_strided((6, 3), (1, 6)),
    "a column overwritten": _column_overwritten,
    "half of a mask filled": _half_masked,
    "transposed product of squares": lambda s, h: (h @ (s.wt @ s.w)) @ s.wt + h @ torch.tril(s.wt @ s.w) @ s.wt,
}


@pytest.mark.parametrize("name", PINNED)
def test_a_layer_whose_order_matters_stays(name: str) -> None:
    torch.manual_seed(0)
    net, x = Layer(PINNED[name]), torch.randn(5, 4)
    spec = PermutationSpec.from_module(net, x, prove=False)
    assert 6 not in spec.groups.values(), dict(spec.groups)
    assert largest_change(spec, net, (x,), {}) < 1e-10


def test_what_is_written_into_a_tensor_has_the_order_of_its_views() -> None:
    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.order = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(1))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                made = torch.zeros(5, 6)
                seen = made.unsqueeze(0)
                torch.mm(x, self.w, out=made)
            return (seen * torch.arange(6.0)).sum() * self.order

    assert not PermutationSpec.from_module(Out(), torch.randn(5, 4), prove=False).groups
