"""Hypothesis strategies for random small networks out of the operators that the tracing covers, and some it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.symmetry.random_builder import Builder, Draw, Step, divisors
from tests.symmetry.random_operations import NEW_IMAGE_STEPS, NEW_TOKEN_STEPS


class RandomNetwork(nn.Module):
    """Steps applied one after the other; each sees the latest tensor and all earlier ones of its kind."""

    def __init__(self, stem: nn.Module, steps: list[tuple[str, Step, nn.Module]], head: nn.Module, pool: str) -> None:
        super().__init__()
        self.stem, self.head, self.pool = stem, head, pool
        self.layers = nn.ModuleList(layer for _, _, layer in steps)
        self.steps = [step for _, step, _ in steps]
        self.recipe = [name for name, _, _ in steps]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        earlier = [x]
        for step, layer in zip(self.steps, self.layers, strict=True):
            x = step(layer, x, earlier)
            earlier.append(x)
        if self.pool == "flatten":
            return self.head(x.flatten(1))
        dims = tuple(range(2, x.ndim)) if self.pool == "channels first" else (1,)
        return self.head(x.mean(dims))

    def __repr__(self) -> str:
        return f"RandomNetwork({self.recipe}, {self.pool})"


def _conv(b: Builder) -> None:
    out, kernel = b.width(), b.draw(st.sampled_from([1, 3]))
    groups = b.draw(st.sampled_from([g for g in divisors(b.now) if out % g == 0]))
    layer = nn.Conv2d(b.now, out, kernel, padding=kernel // 2, groups=groups, bias=b.draw(st.booleans()))
    b.add(f"conv({b.now}, {out}, groups={groups})", lambda layer, x, _: layer(x), out, layer)


def _depthwise(b: Builder) -> None:
    times = b.draw(st.sampled_from([1, 2]))
    layer = nn.Conv2d(b.now, b.now * times, 3, padding=1, groups=b.now)
    b.add(f"depthwise(x{times})", lambda layer, x, _: layer(x), b.now * times, layer)


def _transposed(b: Builder) -> None:
    groups = b.draw(st.sampled_from(divisors(b.now)))
    out = groups * b.draw(st.integers(1, 3))
    layer = nn.ConvTranspose2d(b.now, out, 3, padding=1, groups=groups)
    b.add(f"transposed({b.now}, {out}, groups={groups})", lambda layer, x, _: layer(x), out, layer)


def _twice(b: Builder) -> None:
    layer = nn.Conv2d(b.now, b.now, 1)
    b.add("one weight twice", lambda layer, x, _: layer(layer(x).relu()), b.now, layer)


def _norm(b: Builder) -> None:
    groups = b.draw(st.sampled_from(divisors(b.now)))
    layers: dict[str, nn.Module] = {
        "batch": nn.BatchNorm2d(b.now),
        "instance": nn.InstanceNorm2d(b.now, affine=True),
        f"group {groups}": nn.GroupNorm(groups, b.now),
    }
    name = b.draw(st.sampled_from(sorted(layers)))
    layer = layers[name]
    b.add(f"{name} norm", lambda layer, x, _: layer(x), b.now, layer)


def _channel_layer_norm(b: Builder) -> None:
    layer = b.draw(st.sampled_from([nn.LayerNorm, nn.RMSNorm]))(b.now)
    b.add("layer norm", lambda layer, x, _: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), b.now, layer)


def _activation(b: Builder) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu,
        "gelu": functional.gelu,
        "hardswish": functional.hardswish,
        "softmax over channels": lambda x: x.softmax(1),
        "in place": lambda x: functional.relu_(x.clone()),
        "times ones": lambda x: x * torch.ones(x.shape[1], 1, 1, dtype=x.dtype),
    }
    name = b.draw(st.sampled_from(sorted(functions)))
    b.add(name, lambda layer, x, _: functions[name](x), b.now)


def _prelu(b: Builder) -> None:
    layer = nn.PReLU(b.now)
    b.add("prelu", lambda layer, x, _: layer(x), b.now, layer)


def _pool(b: Builder) -> None:
    function = b.draw(st.sampled_from([functional.max_pool2d, functional.avg_pool2d]))
    b.add("pool", lambda layer, x, _: function(x, 3, 1, 1), b.now)


def _residual(b: Builder) -> None:
    places = [i for i, c in enumerate(b.channels) if c == b.now]
    place = b.draw(st.sampled_from(places))
    b.add(f"add {place}", lambda layer, x, earlier: x + earlier[place], b.now)


def _add_in_place(b: Builder) -> None:
    place = b.draw(st.sampled_from(range(len(b.channels))))
    n = min(b.now, b.channels[place])

    def step(layer: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
        y = x.clone()
        y[:, :n] += earlier[place][:, -n:]
        return y

    b.add(f"add part of {place} in place", step, b.now)


def _filled_in_place(b: Builder) -> None:

    def step(layer: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
        mask = torch.zeros(x.shape[1], 1, 1, dtype=x.dtype)
        mask[: x.shape[1] // 2] = 2.0
        mask[0].fill_(-1.0)
        return x * mask

    b.add("times a mask", step, b.now)


def _cat(b: Builder) -> None:
    place = b.draw(st.sampled_from(range(len(b.channels))))
    if b.now + b.channels[place] <= 24:
        b.add(f"cat {place}", lambda layer, x, earlier: torch.cat([earlier[place], x], 1), b.now + b.channels[place])


def _stack(b: Builder) -> None:
    places = [i for i, c in enumerate(b.channels) if c == b.now]
    place = b.draw(st.sampled_from(places))
    way = b.draw(st.sampled_from(["sum", "first", "flat"]))
    if way == "flat" and b.now > 12:
        return

    def step(layer: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
        y = torch.stack([x, earlier[place]], 1)
        return y.sum(1) if way == "sum" else y[:, 0] if way == "first" else y.transpose(1, 2).flatten(1, 2)

    b.add(f"stack {place}, {way}", step, b.now * (2 if way == "flat" else 1))


def _split(b: Builder) -> None:
    if b.now < 2:
        return
    cut = b.draw(st.integers(1, b.now - 1))
    kept = b.draw(st.booleans())
    b.add(
        f"split at {cut}, keep {'first' if kept else 'last'}",
        lambda layer, x, _: x.split([cut, x.shape[1] - cut], 1)[0 if kept else 1],
        cut if kept else b.now - cut,
    )


def _gate(b: Builder) -> None:
    if b.now % 2 == 0:
        b.add("glu", lambda layer, x, _: functional.glu(x, 1), b.now // 2)


def _shuffle(b: Builder) -> None:
    groups = b.draw(st.sampled_from(divisors(b.now)))
    by_hand = b.draw(st.booleans())

    def step(layer: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
        if not by_hand:
            return functional.channel_shuffle(x, groups)
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    b.add(f"shuffle {groups}", step, b.now)


def _excitation(b: Builder) -> None:
    width = b.width()
    layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(b.now, width, 1), nn.ReLU(), nn.Conv2d(width, b.now, 1))
    b.add("squeeze and excitation", lambda layer, x, _: x * layer(x).sigmoid(), b.now, layer)


def _scale(b: Builder) -> None:
    layer = nn.Conv2d(b.now, b.now, 1, groups=b.now)
    b.add("layer scale", lambda layer, x, _: x * layer.bias[:, None, None], b.now, layer)


def _pad(b: Builder) -> None:
    before, after = b.draw(st.integers(-1, 2)), b.draw(st.integers(0, 2))
    if b.now + before + after > 0:
        b.add(
            f"pad {before}, {after}",
            lambda layer, x, _: functional.pad(x, (0, 0, 0, 0, before, after)),
            b.now + before + after,
        )


def _channel_attention(b: Builder) -> None:
    heads = b.draw(st.sampled_from(divisors(b.now)))

    def step(layer: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
        n, c, h, w = x.shape
        q = x.flatten(2).view(n, heads, c // heads, h * w)
        return ((q @ q.transpose(-2, -1)).softmax(-1) @ q).reshape(n, c, h, w)

    b.add(f"attention between channels, {heads} heads", step, b.now)


def _fold(b: Builder) -> None:
    rows = b.draw(st.sampled_from(divisors(b.now)))

    def step(layer: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
        y = x.unflatten(1, (rows, -1))
        return (y * y.mean(2, keepdim=True)).flatten(1, 2)

    b.add(f"fold into {rows} rows", step, b.now)


def _rows(b: Builder) -> None:
    rows = b.draw(st.sampled_from(divisors(b.now)))
    which = b.draw(st.integers(0, rows - 1))
    b.add(f"row {which} of {rows}", lambda layer, x, _: x.unflatten(1, (rows, -1))[:, which], b.now // rows)


def _ordered(b: Builder) -> None:
    """Functions that depend on the order of channels: no rule may let it move."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "flip": lambda x: x.flip(1),
        "roll": lambda x: x.roll(1, 1),
        "cumsum": lambda x: x.cumsum(1) / x.shape[1],
        "times its number": lambda x: x * torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None, None],
        "sort": lambda x: x.sort(1).values,
        "index": lambda x: x[:, torch.arange(x.shape[1] - 1, -1, -1)],
        "every second": lambda x: x[:, ::2].repeat_interleave(2, 1)[:, : x.shape[1]],
        "repeat": lambda x: x.repeat(1, 2, 1, 1)[:, : x.shape[1]],
        "argmax": lambda x: x + x.argmax(1, keepdim=True),
        "without a rule": lambda x: x.masked_scatter(x > 0, x.flip(1)),
    }
    name = b.draw(st.sampled_from(sorted(functions)))
    b.add(name, lambda layer, x, _: functions[name](x), b.now)


IMAGE_STEPS: dict[str, Callable[[Builder], None]] = {
    f.__name__: f
    for f in (
        *(_conv, _depthwise, _transposed, _twice, _norm, _channel_layer_norm, _activation, _prelu, _pool, _residual),
        *(_add_in_place, _filled_in_place, _cat, _stack, _split, _gate, _shuffle, _excitation, _scale, _pad),
        *(_channel_attention, _fold, _rows, _ordered),
    )
} | NEW_IMAGE_STEPS


def _linear(b: Builder) -> None:
    layer = nn.Linear(b.now, b.width(), bias=b.draw(st.booleans()))
    b.add("linear", lambda layer, x, _: layer(x), layer.out_features, layer)


def _token_norm(b: Builder) -> None:
    layer = b.draw(st.sampled_from([nn.LayerNorm, nn.RMSNorm]))(b.now)
    b.add("norm", lambda layer, x, _: layer(x), b.now, layer)


def _mixer(b: Builder) -> None:
    layer = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 4))
    b.add("mix tokens", lambda layer, x, _: layer(x.transpose(1, 2)).transpose(1, 2), b.now, layer)


def _multihead(b: Builder) -> None:
    heads = b.draw(st.sampled_from(divisors(b.now)))
    layer = nn.MultiheadAttention(b.now, heads, batch_first=True)
    weights = b.draw(st.booleans())
    b.add(f"attention, {heads} heads", lambda layer, x, _: layer(x, x, x, need_weights=weights)[0], b.now, layer)


def _packed(b: Builder) -> None:
    heads = b.draw(st.sampled_from(divisors(b.now)))
    layout = b.draw(st.sampled_from(["3 first", "3 last", "chunks"]))
    causal = b.draw(st.booleans())
    layer = nn.Linear(b.now, 3 * b.now)

    def step(layer: Any, x: Tensor, earlier: list[Tensor]) -> Tensor:
        n, t, c = x.shape
        y = layer(x)
        if layout == "3 first":
            q, k, v = y.reshape(n, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        elif layout == "3 last":
            q, k, v = y.reshape(n, t, heads, c // heads, 3).permute(4, 0, 2, 1, 3)
        else:
            q, k, v = (z.reshape(n, t, heads, c // heads).transpose(1, 2) for z in y.chunk(3, -1))
        z = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return z.transpose(1, 2).flatten(2)

    b.add(f"packed attention, {heads} heads, {layout}", step, b.now, layer)


def _recurrent(b: Builder) -> None:
    kind = b.draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
    width, both = b.width(), b.draw(st.booleans())
    layer = kind(b.now, width, num_layers=b.draw(st.integers(1, 2)), bidirectional=both, batch_first=True)
    b.add(f"{kind.__name__}", lambda layer, x, _: layer(x)[0], width * (2 if both else 1), layer)


def _token_activation(b: Builder) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": functional.gelu,
        "normalize": lambda x: functional.normalize(x, dim=-1),
        "softmax": lambda x: x.softmax(-1),
        "centre": lambda x: x - x.mean(-1, keepdim=True),
        "flip": lambda x: x.flip(-1),
        "roll tokens": lambda x: x.roll(1, 1),
        "rotate": lambda x: torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1),
        "prefix": lambda x: torch.cat([x.new_zeros(x.shape[0], 1, x.shape[2]), x[:, 1:]], 1),
    }
    name = b.draw(st.sampled_from(sorted(functions)))
    b.add(name, lambda layer, x, _: functions[name](x), b.now)


def _token_residual(b: Builder) -> None:
    places = [i for i, c in enumerate(b.channels) if c == b.now]
    place = b.draw(st.sampled_from(places))
    b.add(f"add {place}", lambda layer, x, earlier: x + earlier[place], b.now)


def _einsum(b: Builder) -> None:
    place = b.draw(st.sampled_from(range(len(b.channels))))
    b.add(
        f"einsum with {place}",
        lambda layer, x, earlier: torch.einsum("ntc,nsc,nsd->ntd", x, x, earlier[place]) / 8,
        b.channels[place],
    )


def _token_cat(b: Builder) -> None:
    place = b.draw(st.sampled_from(range(len(b.channels))))
    if b.now + b.channels[place] <= 24:
        b.add(f"cat {place}", lambda layer, x, earlier: torch.cat([x, earlier[place]], -1), b.now + b.channels[place])


def _token_gate(b: Builder) -> None:
    if b.now % 2 == 0:
        b.add("gate", lambda layer, x, _: torch.sigmoid(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], b.now // 2)


TOKEN_STEPS: dict[str, Callable[[Builder], None]] = {
    f.__name__: f
    for f in (
        *(_linear, _token_norm, _mixer, _multihead, _packed, _recurrent, _token_activation, _token_residual),
        *(_einsum, _token_cat, _token_gate),
    )
} | NEW_TOKEN_STEPS


@st.composite
def image_networks(draw: Draw) -> tuple[nn.Module, Tensor]:
    """A network on images (2, 3, 4, 4)."""
    stem = nn.Conv2d(3, draw(st.sampled_from([4, 6, 8])), 1)
    builder = Builder(draw, stem.out_channels)
    for _ in range(draw(st.integers(1, 6))):
        builder.step(IMAGE_STEPS)
    pool = draw(st.sampled_from(["flatten", "channels first"]))
    head = nn.Linear(builder.now * (16 if pool == "flatten" else 1), 3)
    return RandomNetwork(stem, builder.steps, head, pool), torch.randn(2, 3, 4, 4)


@st.composite
def token_networks(draw: Draw) -> tuple[nn.Module, Tensor]:
    """A network on tokens (2, 4)."""
    stem = nn.Embedding(7, draw(st.sampled_from([4, 6, 8])))
    builder = Builder(draw, stem.embedding_dim)
    for _ in range(draw(st.integers(1, 5))):
        builder.step(TOKEN_STEPS)
    pool = draw(st.sampled_from(["flatten", "tokens"]))
    head = nn.Linear(builder.now * (4 if pool == "flatten" else 1), 3)
    return RandomNetwork(stem, builder.steps, head, pool), torch.arange(8).reshape(2, 4) % 7
