"""Networks that every repair test enters, and clients of them with made-up parameters."""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

State = dict[str, Tensor]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 64, 16), nn.ReLU(inplace=True), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5)
    )


class Block(nn.Module):
    """Residual block; `norm` builds a norm for a number of channels."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(out)) + x)


def resnet(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        norm(8),
        nn.ReLU(inplace=True),
        Block(8, norm),
        Block(8, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


class ChannelsFirstLayerNorm(nn.LayerNorm):
    """LayerNorm over axis 1, as in ConvNeXt and the paper's ResNets."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class OwnNorm(nn.Module):
    """A norm that is no class of torch's, with a weight and a bias per channel of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class OwnLinear(nn.Module):
    """A linear layer whose weight is transposed: no correction folds into it as into torch's."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(features, features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1),
        nn.GELU(),
        nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2),
        nn.LayerNorm((6, 12, 12)),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6, stride=2),
        nn.InstanceNorm2d(6, affine=True),
        nn.Flatten(2),
        nn.Conv1d(6, 4, 3),
        nn.BatchNorm1d(4),
        nn.Flatten(),
        nn.Linear(4 * 23, 5),
    )


class Transformer(nn.Module):
    """Encoder over the rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(24, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.movedim(1, 2).flatten(2)
        return self.head(self.encoder(self.embed(rows)).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "plain cnn": plain_cnn,
    "resnet-batchnorm": lambda: resnet(nn.BatchNorm2d),
    "resnet-groupnorm": lambda: resnet(lambda width: nn.GroupNorm(2, width)),
    "resnet-layernorm": lambda: resnet(ChannelsFirstLayerNorm),
    "resnet-own-norm": lambda: resnet(OwnNorm),
    "transformer": Transformer,
    "torchvision densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, bn_size=2, num_classes=5),
    "torchvision convnext": lambda: torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(8, 16, 2), torchvision.models.convnext.CNBlockConfig(16, None, 1)],
        num_classes=5,
    ),
}


class Siamese(nn.Module):
    """Calls its tower twice in one pass, the second time on what depends on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 96))
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.flatten(1).chunk(2, dim=1)
        return torch.as_tensor(self.head(torch.relu(self.tower(right + self.tower(left)))))


class Pairing(nn.Module):
    """A bilinear layer, an embedding of rounded inputs, a table that two layers share, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(96, 6), nn.Linear(96, 6, bias=False)
        self.pair = nn.Bilinear(6, 6, 8)
        self.table = nn.Embedding(4, 8)
        self.tied = nn.Linear(8, 4, bias=False)
        self.tied.weight = self.table.weight
        self.frozen = nn.Linear(4, 7).requires_grad_(False)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.flatten(1).chunk(2, dim=1)
        codes = self.table(x[:, 0, 0, 0].abs().long().clamp_max(3))
        joint = torch.tanh(self.pair(torch.relu(self.left(left)), self.right(right)) + codes)
        return torch.as_tensor(self.head(torch.relu(self.frozen(self.tied(joint)))))


def convolutions() -> nn.Module:
    """Grouped, strided, dilated and transposed, in one to three dimensions, with and without biases, other paddings."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, dilation=2, padding=2, groups=3, padding_mode="circular"),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Unflatten(1, (2, 2)),
        nn.Conv3d(2, 4, (2, 3, 3), stride=(1, 2, 2), padding_mode="replicate", padding=(0, 1, 1), bias=False),
        nn.GELU(),
        nn.ConvTranspose3d(4, 4, (1, 2, 2), groups=2),
        nn.Flatten(2),
        nn.ConvTranspose1d(4, 6, 3, stride=2, bias=False),
        nn.Tanh(),
        nn.Conv1d(6, 4, 5, stride=3, groups=2, padding="valid"),
        nn.AdaptiveAvgPool1d(6),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


ODD_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolutions of every kind": convolutions,
    "a layer called twice": Siamese,
    "what cannot be fitted": Pairing,
}
"""Networks for what is true of all of them, though not all is exact."""


def inputs(examples: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(examples, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def client(build: Callable[[], nn.Module], seed: int) -> State:
    """State dict of a client, with scales, shifts and running statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        for key, value in module.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif key.endswith("num_batches_tracked"):
                value.fill_(10 + seed)
            elif value.dim() == 1:
                value.add_(torch.randn_like(value), alpha=0.3)
    return {key: value.clone() for key, value in module.state_dict().items()}


def average(states: list[State], weights: list[float] | None = None) -> State:
    shares = torch.tensor(weights or [1.0] * len(states), dtype=torch.float64)
    shares /= shares.sum()
    return {
        key: sum(s * state[key].double() for s, state in zip(shares, states, strict=True)).to(states[0][key].dtype)  # type: ignore[union-attr]
        for key in states[0]
    }
