"""Small networks, one for each thing that the tracing has to understand, with the groups that it should find."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.written import Decoder


@dataclass(frozen=True)
class Network:
    """A network, example inputs and the sizes of all groups it has, in ascending order."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    sizes: tuple[int, ...]


class Function(nn.Module):
    """Named submodules and a function of them and the inputs."""

    def __init__(self, function: Callable[..., Tensor], **children: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def asserted_small(x: Tensor) -> Tensor:
    assert x.max() < 100
    return x


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Residual(nn.Module):
    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class LlamaAttention(nn.Module):
    """Rotary positions, RMSNorm, grouped queries, gated MLP."""

    def __init__(self, width: int = 16, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.embed = nn.Embedding(11, width)
        self.norm = nn.RMSNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, shared * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 10, bias=False) for _ in range(2))
        self.down = nn.Linear(10, width, bias=False)
        self.head = nn.Linear(width, 5)

    def _rotate(self, x: Tensor) -> Tensor:
        half = self.size // 2
        angle = torch.arange(x.shape[2])[:, None] / torch.arange(1, half + 1)[None]
        angle = torch.cat([angle, angle], dim=-1).to(x.dtype)
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * angle.cos() + turned * angle.sin()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        b, t, c = x.shape
        y = self.norm(x)
        q = self._rotate(self.q(y).view(b, t, self.heads, self.size).transpose(1, 2))
        k = self._rotate(self.k(y).view(b, t, self.shared, self.size).transpose(1, 2))
        v = self.v(y).view(b, t, self.shared, self.size).transpose(1, 2)
        k, v = (z.repeat_interleave(self.heads // self.shared, dim=1) for z in (k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.size)
        mask = torch.full((t, t), float("-inf")).triu(1).to(scores.dtype)
        z = torch.softmax(scores + mask, dim=-1) @ v
        x = x + self.o(z.transpose(1, 2).reshape(b, t, c))
        y = self.norm(x)
        return self.head(x + self.down(functional.silu(self.gate(y)) * self.up(y)))


class PackedAttention(nn.Module):
    """As in timm and torchvision's Swin: (3, heads, head_dim) seen as axes, taken apart by index."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.qkv, self.proj = nn.Linear(5, width), nn.Linear(width, 3 * width), nn.Linear(width, 4)
        self.bias = nn.Parameter(torch.randn(9, heads))
        self.register_buffer("place", torch.arange(36).reshape(6, 6) % 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * 0.5) @ k.transpose(-2, -1)
        scores = scores + self.bias[self.place.view(-1)].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class RecurrentClassifier(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], from_state: bool = False, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = kind(6, 5, batch_first=True, **options)
        width = options.get("proj_size", 0) or 5
        self.from_state = from_state
        self.out = nn.Linear(width * (2 if options.get("bidirectional") and not from_state else 1), 3)

    def forward(self, tokens: Tensor) -> Tensor:
        y, state = self.rnn(self.embed(tokens))
        if self.from_state:
            return self.out(state[0][-1] if isinstance(state, tuple) else state[-1])
        return self.out(y[:, -1])


def _images(channels: int = 3, side: int = 8) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(2, channels, side, side),)


def _vectors(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(*shape),)


def _tokens() -> tuple[Tensor]:
    return (torch.arange(14).reshape(2, 7) % 11,)


def _dense(net: Any, x: Tensor) -> Tensor:
    a = net.a(x)
    b = net.b(functional.relu(torch.cat([x, a], 1)))
    return net.head(torch.cat([x, a, b], 1).flatten(1))


def _excitation(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    gate = net.up(functional.relu(net.down(x.mean((2, 3), keepdim=True))))
    return net.head((x * gate.sigmoid()).mean((2, 3)))


def _shuffled(net: Any, x: Tensor) -> Tensor:
    left, right = net.a(x).chunk(2, dim=1)
    x = torch.cat([left, net.b(right)], 1)
    n, c, h, w = x.shape
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return net.head(x.mean((2, 3)))


def _option_a(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    return net.head(functional.relu(net.b(x) + short).mean((2, 3)))


def _einsum_attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (2, 4)) for layer in (net.q, net.k, net.v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
    return net.o(torch.einsum("bhij,bjhd->bihd", scores, v).flatten(2))


def _glu(net: Any, x: Tensor) -> Tensor:
    return net.b(functional.glu(net.a(x), dim=-1))


def _twice(net: Any, x: Tensor) -> Tensor:
    return net.out(torch.relu(net.shared(torch.relu(net.shared(net.first(x))))))


def _self_attention(net: Any, x: Tensor) -> Tensor:
    x = net.embed(x)
    return net.out(net.attention(x, x, x, need_weights=True)[0])


def _cross_attention(net: Any, x: Tensor, memory: Tensor) -> Tensor:
    memory = net.memory(memory)
    return net.out(net.attention(net.embed(x), memory, memory, need_weights=False)[0])


def _class_token(net: Any, x: Tensor) -> Tensor:
    x = net.embed(x)
    x = torch.cat([net.token.expand(x.shape[0], -1, -1), x], dim=1) + net.place
    return net.out(net.mlp(x)[:, 0])


NETWORKS: dict[str, Network] = {
    "mlp": Network(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        _vectors(2, 4),
        (5, 6),
    ),
    "flatten": Network(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)),
        _images(),
        (4,),
    ),
    "conv1d": Network(
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(12, 2)),
        _vectors(2, 3, 8),
        (4,),
    ),
    "conv3d": Network(
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 3),
            nn.InstanceNorm3d(4, affine=True),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        _vectors(2, 2, 6, 6, 6),
        (4,),
    ),
    "grouped": Network(
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=4), nn.Flatten(), nn.Linear(288, 2)),
        _images(),
        (2, 3, 4),
    ),
    "depthwise": Network(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.PReLU(6), nn.Conv2d(6, 2, 1)),
        _images(),
        (6,),
    ),
    "depth multiplier": Network(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 2, 1)),
        _images(),
        (2, 6),
    ),
    "transposed": Network(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.ConvTranspose2d(4, 6, 3),
            nn.ConvTranspose2d(6, 9, 2, groups=3),
            nn.Conv2d(9, 2, 1),
        ),
        _images(),
        (2, 3, 3, 4),
    ),
    "group norm": Network(
        lambda: nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 2, 1)),
        _images(),
        (3, 4),
    ),
    "layer scale": Network(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3),
            Residual(nn.Conv2d(6, 5, 1), nn.GELU(), nn.Conv2d(5, 6, 1), LayerScale(6)),
            nn.Conv2d(6, 2, 1),
        ),
        _images(),
        (5, 6),
    ),
    "dense": Network(
        lambda: Function(_dense, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(7, 5, 1), head=nn.Linear(768, 2)), _images(), (4, 5)
    ),
    "squeeze and excitation": Network(
        lambda: Function(
            _excitation, a=nn.Conv2d(3, 6, 3), down=nn.Conv2d(6, 4, 1), up=nn.Conv2d(4, 6, 1), head=nn.Linear(6, 2)
        ),
        _images(),
        (4, 6),
    ),
    "channel shuffle": Network(
        lambda: Function(
            _shuffled,
            a=nn.Conv2d(3, 12, 1),
            b=nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 1)),
            head=nn.Linear(12, 2),
        ),
        _images(),
        (5, 6, 6),
    ),
    "built-in channel shuffle": Network(
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(3), nn.ReLU(), nn.Conv2d(12, 2, 1)),
        _images(),
        (3, 4),
    ),
    "pixel shuffle": Network(
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2), nn.PixelUnshuffle(4), nn.Conv2d(48, 2, 1)),
        _images(),
        (3,),
    ),
    "padded shortcut": Network(
        lambda: Function(_option_a, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 8, 3, 2, 1), head=nn.Linear(8, 2)),
        _images(),
        (2, 2, 4),
    ),
    "gated": Network(lambda: Function(_glu, a=nn.Linear(4, 12), b=nn.Linear(6, 3)), _vectors(2, 4), (6,)),
    "einsum attention": Network(
        lambda: Function(_einsum_attention, q=nn.Linear(5, 8), k=nn.Linear(5, 8), v=nn.Linear(5, 8), o=nn.Linear(8, 3)),
        _vectors(2, 6, 5),
        (2, 4, 4),
    ),
    "packed attention": Network(PackedAttention, _vectors(2, 6, 5), (3, 4, 4, 12)),
    "self attention": Network(
        lambda: Function(
            _self_attention,
            embed=nn.Linear(5, 12),
            attention=nn.MultiheadAttention(12, 3, batch_first=True),
            out=nn.Linear(12, 2),
        ),
        _vectors(2, 6, 5),
        (3, 4, 4, 12, 12),
    ),
    "cross attention": Network(
        lambda: Function(
            _cross_attention,
            embed=nn.Linear(5, 12),
            memory=nn.Linear(4, 12),
            attention=nn.MultiheadAttention(12, 3, add_bias_kv=True),
            out=nn.Linear(12, 2),
        ),
        lambda: (torch.randn(6, 2, 5), torch.randn(7, 2, 4)),
        (3, 4, 4, 12, 12),
    ),
    "encoder layer": Network(
        lambda: nn.Sequential(
            nn.Linear(5, 12), nn.TransformerEncoderLayer(12, 3, 10, batch_first=True), nn.Linear(12, 2)
        ),
        _vectors(2, 6, 5),
        (3, 4, 4, 10, 12),
    ),
    "encoder, norm first": Network(
        lambda: nn.Sequential(
            nn.Linear(5, 12),
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(12, 2, 10, norm_first=True), 2, enable_nested_tensor=False
            ),
            nn.Linear(12, 2),
        ),
        _vectors(6, 2, 5),
        (2, 2, 6, 6, 6, 6, 10, 10, 12),
    ),
    "class token": Network(
        lambda: Function(
            _class_token,
            embed=nn.Linear(5, 8),
            token=nn.Parameter(torch.zeros(1, 1, 8)),
            place=nn.Parameter(torch.zeros(1, 7, 8)),
            mlp=Residual(nn.LayerNorm(8), nn.Linear(8, 9), nn.GELU(), nn.Linear(9, 8)),
            out=nn.Linear(8, 2),
        ),
        _vectors(2, 6, 5),
        (8, 9),
    ),
    "gpt": Network(lambda: Decoder(13, 12, 3, 2, 7), _tokens, (3, 3, 4, 4, 4, 4, 12, 48, 48)),
    "llama": Network(LlamaAttention, _tokens, (2, 2, 4, 10, 16)),
    "lstm": Network(lambda: RecurrentClassifier(nn.LSTM, num_layers=2), _tokens, (5, 5, 6)),
    "bidirectional lstm": Network(
        lambda: RecurrentClassifier(nn.LSTM, num_layers=2, bidirectional=True), _tokens, (5, 5, 5, 5, 6)
    ),
    "projected lstm": Network(lambda: RecurrentClassifier(nn.LSTM, proj_size=4), _tokens, (4, 5, 6)),
    "lstm's state": Network(lambda: RecurrentClassifier(nn.LSTM, from_state=True, num_layers=2), _tokens, (5, 5, 6)),
    "gru": Network(lambda: RecurrentClassifier(nn.GRU, num_layers=2), _tokens, (5, 5, 6)),
    "gru's state": Network(lambda: RecurrentClassifier(nn.GRU, from_state=True, num_layers=2), _tokens, (5, 5, 6)),
    "rnn": Network(lambda: RecurrentClassifier(nn.RNN), _tokens, (5, 6)),
    "used twice": Network(
        lambda: Function(_twice, first=nn.Linear(4, 6), shared=nn.Linear(6, 6), out=nn.Linear(6, 3)),
        _vectors(2, 4),
        (6,),
    ),
    "weight norm": Network(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3)),
        _vectors(2, 4),
        (6,),
    ),
}
