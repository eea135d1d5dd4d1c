"""More steps for `random_networks`: spellings of products, casts, indices, draws, complex numbers, mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.symmetry.random_builder import Builder, divisors


def _noise_twice(x: Tensor) -> Tensor:
    noise = torch.randn_like(x)
    return x * noise + noise.flip(-1)


def _pairs(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(2, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * 1j).flatten(2)


def _autocast(x: Tensor, w: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x @ w.t()
    return y.type_as(x)


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "@ T": lambda x, w: x @ w.T,
    "@ mT": lambda x, w: x @ w.mT,
    "@ H": lambda x, w: x @ w.H,
    "left": lambda x, w: (w @ x.mT).mT,
    "both": lambda x, w: (w.T.T @ x.transpose(-1, -2)).adjoint(),
    "linear": functional.linear,
    "einsum": lambda x, w: torch.einsum("...i,oi->...o", x, w),
    "implicit einsum": lambda x, w: torch.einsum("bti,oi", x, w).unflatten(2, (-1,)) if x.ndim == 3 else x @ w.T,
    "tensordot": lambda x, w: torch.tensordot(x, w, dims=([x.ndim - 1], [1])),
    "inner": torch.inner,
    "broadcast": lambda x, w: (x.unsqueeze(-2) * w).sum(-1),
    "baddbmm": lambda x, w: torch.baddbmm(x.new_zeros(1), x, w.T.expand(x.shape[0], -1, -1)),
    "permute": lambda x, w: x @ w.permute(1, 0).contiguous(),
    "flat": lambda x, w: x @ w.ravel().view(w.shape).swapaxes(0, 1),
    "conv": lambda x, w: functional.conv1d(x.transpose(1, 2), w[..., None]).transpose(1, 2),
    "autocast": _autocast,
}


def product(b: Builder) -> None:
    layer = nn.Linear(b.now, b.width(), bias=False)
    name = b.draw(st.sampled_from(sorted(PRODUCTS)))
    b.add(f"product, {name}", lambda layer, x, _: PRODUCTS[name](x, layer.weight), layer.out_features, layer)


def low_rank(b: Builder) -> None:
    out = b.width()
    layer = nn.ModuleList([nn.Linear(b.now, out), nn.Linear(b.now, 2, bias=False), nn.Linear(2, out, bias=False)])
    b.add("low rank", lambda m, x, _: m[0](x) + x @ m[1].weight.T @ m[2].weight.T, out, layer)


def cast(b: Builder) -> None:
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "float": lambda x: x.float().tanh().to(x.dtype),
        "half": lambda x: x.half().sigmoid().type_as(x),
        "bfloat16": lambda x: x.to(torch.bfloat16).relu().to(x),
        "single RMS": lambda x: (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype),
        "single softmax": lambda x: x.softmax(-1, dtype=torch.float32).type_as(x),
    }
    name = b.draw(st.sampled_from(sorted(ways)))
    b.add(f"cast, {name}", lambda layer, x, _: ways[name](x), b.now)


def similarity(b: Builder) -> None:
    place = b.draw(st.sampled_from([i for i, c in enumerate(b.channels) if c == b.now]))
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cosine": lambda x, y: x * functional.cosine_similarity(x, y, dim=-1)[..., None],
        "distance": lambda x, y: x * torch.exp(-functional.pairwise_distance(x, y, keepdim=True)),
        "distances": lambda x, y: torch.cdist(x, y).softmax(-1) @ y,
        "normalised": lambda x, y: functional.normalize(x, dim=-1) + functional.normalize(y, dim=-1),
        "vecdot": lambda x, y: x * torch.linalg.vecdot(x, y)[..., None].sigmoid(),
        "norm": lambda x, y: x / (torch.linalg.norm(y, dim=-1, keepdim=True) + 1),
        "renorm": lambda x, y: torch.renorm(x, 2, 0, 1.0) + y,
    }
    name = b.draw(st.sampled_from(sorted(ways)))
    b.add(f"{name} with {place}", lambda layer, x, earlier: ways[name](x, earlier[place]), b.now)


def _rows(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1] - 1, -1, -1)


def _along(x: Tensor) -> Tensor:
    return _rows(x)[None, :, None].expand(x.shape)


def _masked(x: Tensor) -> Tensor:
    x = x.clone()
    x[x.mean(-1) > 0] = 0.5
    x[x > 1] = x.new_tensor(1.0)
    return x


def _assigned(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, torch.tensor([0, 2])] = x[:, 1:2] * 2
    x[:, 0] += x[:, 1]
    return x


def indexed(b: Builder) -> None:
    """Along tokens, whose order is fixed, or along channels, which then must not move."""
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "rows": lambda x: x[:, _rows(x)],
        "two indices": lambda x: x[torch.arange(x.shape[0])[:, None], _rows(x)],
        "gather": lambda x: x.gather(1, _along(x)),
        "take_along_dim": lambda x: torch.take_along_dim(x, _rows(x)[None, :, None], 1),
        "scatter": lambda x: torch.zeros_like(x).scatter(1, _along(x), x),
        "scatter_add": lambda x: torch.ones_like(x).scatter_add(1, torch.zeros_like(_along(x)), x),
        "scatter part": lambda x: x.scatter(1, _along(x)[:, :2, :-1], x[:, :2, :-1]),
        "index_add": lambda x: torch.zeros_like(x).index_add(1, _rows(x) // 2, x),
        "index_copy": lambda x: x.index_copy(1, _rows(x), x * 2),
        "index_put": lambda x: torch.zeros_like(x).index_put((torch.zeros(1, dtype=torch.long), _rows(x)), x[0]),
        "masked": _masked,
        "assigned": _assigned,
        "topk of tokens": lambda x: x.gather(1, x.mean(-1, keepdim=True).topk(4, 1).indices.expand(x.shape)),
        "channels gathered": lambda x: x.gather(2, torch.arange(x.shape[2]).flip(0).expand(x.shape)),
        "channels added": lambda x: torch.zeros_like(x).index_add(2, torch.arange(x.shape[2]) // 2, x),
        "channels put": lambda x: x.index_put((torch.tensor([0]), torch.tensor([1]), torch.tensor([0])), x.new_ones(1)),
        "largest channel": lambda x: x.gather(2, x.argmax(2, keepdim=True)) + x,
        "one channel": lambda x: x + x[..., torch.tensor([0])],
        "elements": lambda x: x.masked_scatter(x > 0, x.flip(2)),
        "cumulative": lambda x: x.cumsum(1) / 4,
        "windows": lambda x: functional.pad(x.unfold(1, 2, 1).mean(-1), (0, 0, 0, 1)),
        "windows of channels": lambda x: functional.pad(x, (0, 1)).unfold(2, 2, 1).prod(-1),
    }
    name = b.draw(st.sampled_from(sorted(ways)))
    b.add(f"indexed, {name}", lambda layer, x, _: ways[name](x), b.now)


def noise(b: Builder) -> None:
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "added": lambda x: x + torch.randn_like(x),
        "one row": lambda x: x * torch.rand(x.shape[-1], dtype=x.dtype),
        "dropout": lambda x: functional.dropout(x, 0.3, True),
        "normal": lambda x: torch.normal(x, 0.5),
        "in place": lambda x: x + torch.empty_like(x).uniform_(-1, 1),
        "bernoulli": lambda x: torch.bernoulli(x.sigmoid()) * x,
        "in an order": lambda x: x + torch.randn_like(x).cumsum(-1),
        "twice": _noise_twice,
        "gumbel": functional.gumbel_softmax,
    }
    name = b.draw(st.sampled_from(sorted(ways)))
    b.add(f"noise, {name}", lambda layer, x, _: ways[name](x), b.now)


def complex_numbers(b: Builder) -> None:
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "modulus": lambda x: torch.complex(x, x.tanh()).abs(),
        "turned": lambda x: torch.view_as_real(torch.view_as_complex(torch.stack([x, x.sin()], -1)) * 1j)[..., 0],
        "tokens transformed": lambda x: torch.fft.fft(x, dim=1).real / 2,
        "there and back": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=4, dim=1),
        "channels transformed": lambda x: torch.fft.fft(x, dim=2).real / 2,
    }
    if b.now % 2 == 0:
        ways["pairs"] = lambda x: torch.view_as_real(
            torch.view_as_complex(x.unflatten(2, (-1, 2)).contiguous()) * 1j
        ).flatten(2)
    name = b.draw(st.sampled_from(sorted(ways)))
    b.add(f"complex, {name}", lambda layer, x, _: ways[name](x), b.now)


class Experts(nn.Module):
    """Three experts as stacked weights or as modules, with a router."""

    def __init__(self, width: int, inner: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.router = nn.Linear(width, 3)
        if how == "modules":
            self.each = nn.ModuleList(
                nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width)) for _ in range(3)
            )
        else:
            self.up, self.down = nn.Parameter(torch.randn(3, width, inner)), nn.Parameter(torch.randn(3, inner, width))

    def forward(self, x: Tensor) -> Tensor:
        gates, chosen = self.router(x).softmax(-1).topk(2, -1)
        if self.how == "modules":
            y = torch.stack([expert(x) for expert in self.each], 2)
            y = y.gather(2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))
        elif self.how == "gathered":
            y = torch.einsum("ntd,ntkdh->ntkh", x, self.up[chosen]).relu()
            y = torch.einsum("ntkh,ntkhd->ntkd", y, self.down[chosen])
        else:
            y = torch.einsum("ntd,edh->nteh", x, self.up).relu()
            y = torch.einsum("nteh,ehd->nted", y, self.down)
            gates = torch.zeros(*x.shape[:2], 3, dtype=x.dtype).scatter(-1, chosen, gates)
        return (y * gates[..., None]).sum(2)


def experts(b: Builder) -> None:
    how = b.draw(st.sampled_from(["modules", "gathered", "scattered"]))
    b.add(f"experts, {how}", lambda layer, x, _: layer(x), b.now, Experts(b.now, b.width(), how))


def _older_weight_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(layer)


def normed_weight(b: Builder) -> None:
    norms = {
        "weight_norm": parametrizations.weight_norm,
        "spectral_norm": parametrizations.spectral_norm,
        "older weight_norm": _older_weight_norm,
        "older spectral_norm": nn.utils.spectral_norm,
    }
    name = b.draw(st.sampled_from(sorted(norms)))
    out = b.width()
    b.add(f"linear with {name}", lambda layer, x, _: layer(x), out, norms[name](nn.Linear(b.now, out)))


def diagonals(b: Builder) -> None:
    layer = nn.Linear(b.now, b.now, bias=False)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "matrix": lambda x, w: x @ torch.diag(w.sum(0)),
        "of a weight": lambda x, w: x * w.diagonal(),
        "of a product": lambda x, w: x * (w @ w.T).diagonal(),
        "trace": lambda x, w: x * (w @ w.T).trace(),
        "off": lambda x, w: functional.pad(x[..., 1:] * w.diagonal(1), (0, 1)) if x.shape[-1] > 1 else x,
        "embedded": lambda x, w: torch.diag_embed(x).sum(-1) * w.mean(0),
    }
    name = b.draw(st.sampled_from(sorted(ways)))
    b.add(f"diagonal, {name}", lambda layer, x, _: ways[name](x, layer.weight), b.now, layer)


def heads_by_hand(b: Builder) -> None:
    """Attention with grouped queries, written with `expand`."""
    heads = b.draw(st.sampled_from(divisors(b.now)))
    shared = b.draw(st.sampled_from(divisors(heads)))
    size = b.now // heads
    layer = nn.ModuleList([nn.Linear(b.now, b.now), nn.Linear(b.now, shared * size), nn.Linear(b.now, shared * size)])

    def step(m: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
        n, t, c = x.shape
        q = m[0](x).view(n, t, heads, size).transpose(1, 2)
        k, v = (f(x).view(n, t, shared, size).transpose(1, 2) for f in (m[1], m[2]))
        k, v = (z[:, :, None].expand(n, shared, heads // shared, t, size).reshape(n, heads, t, size) for z in (k, v))
        mask = torch.full((t, t), float("-inf")).triu(1).to(x.dtype)
        return ((q @ k.mT + mask).softmax(-1) @ v).transpose(1, 2).reshape(n, t, c)

    b.add(f"attention, {heads} heads over {shared}", step, b.now, layer)


def image_windows(b: Builder) -> None:
    """A convolution written with `unfold`, and what else looks at places in an image."""
    out = b.width()
    layer = nn.Linear(b.now * 9, out, bias=False)
    way = b.draw(st.sampled_from(["unfold", "fold", "grid", "unpool", "shift"]))

    def step(layer: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
        if way == "unfold":
            return (layer.weight @ functional.unfold(x, 3, padding=1)).unflatten(2, x.shape[2:])
        if way == "fold":
            return functional.fold(functional.unfold(x, 2, stride=2) * 2, x.shape[2:], 2, stride=2)
        if way == "grid":
            return functional.grid_sample(x, x.new_zeros(x.shape[0], *x.shape[2:], 2), align_corners=False) + x
        if way == "unpool":
            return functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2)
        return torch.cat([x[:, :, 1:], x[:, :, :1]], 2)

    b.add(f"windows, {way}", step, out if way == "unfold" else b.now, layer if way == "unfold" else None)


def on_images(step: Callable[[Builder], None]) -> Callable[[Builder], None]:
    """A step on tokens, applied to the four rows of an image's channels (N, C, 4, 4) as (N, 4, C) each."""

    def wrapped(b: Builder) -> None:
        before = len(b.steps)
        step(b)
        if len(b.steps) == before:
            return
        name, inner, layer = b.steps[-1]

        def apply(m: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
            def rows(y: Tensor) -> Tensor:
                return y.permute(0, 2, 3, 1).flatten(0, 1)

            y = inner(m, rows(x), [rows(z) for z in earlier])
            return y.unflatten(0, (x.shape[0], x.shape[2])).permute(0, 3, 1, 2)

        b.steps[-1] = (f"{name}, on rows", apply, layer)

    wrapped.__name__ = f"on_images_{step.__name__}"
    return wrapped


ON_TOKENS = (
    *(product, low_rank, cast, similarity, indexed, noise, complex_numbers, experts, normed_weight, diagonals),
    heads_by_hand,
)
NEW_TOKEN_STEPS = {step.__name__: step for step in ON_TOKENS}
NEW_IMAGE_STEPS = {
    step.__name__: step
    for step in (*map(on_images, (product, low_rank, cast, similarity, indexed, noise)), image_windows)
}
