"""Networks written here: what text-books and federated examples use, and no library builds from a configuration."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from benchmarks.zoo.architecture import Architecture, Table, images, tokens


class DecoderBlock(nn.Module):
    """A pre-norm decoder block with a packed projection and causal attention, after GPT-2.

    Parameters
    ----------
    width
        Size of the residual stream.
    heads
        Number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        n, t, c = x.shape
        q, k, v = (
            part.view(n, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(c, dim=2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, c))
        mapped: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return mapped


class Decoder(nn.Module):
    """A GPT-style decoder whose output layer shares its weight with the embedding.

    Parameters
    ----------
    vocabulary
        Number of tokens.
    width, heads, depth
        Size of the residual stream, heads of each block, number of blocks.
    length
        Longest text.
    """

    def __init__(self, vocabulary: int, width: int, heads: int, depth: int, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(DecoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, T, vocabulary) of tokens (N, T)."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class RecurrentClassifier(nn.Module):
    """Two LSTM layers on embedded tokens; the last state of the upper one is classified.

    Parameters
    ----------
    vocabulary
        Number of tokens.
    width
        Size of the embedding and of the hidden state.
    classes
        Number of outputs.
    """

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.out = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, classes) of tokens (N, T)."""
        _, (state, _) = self.lstm(self.embed(tokens))
        logits: Tensor = self.out(state[-1])
        return logits


class UNet(nn.Module):
    """Encoder and decoder with skips that are concatenated, in two or three dimensions.

    Parameters
    ----------
    dimensions
        2 for images, 3 for volumes.
    channels
        Channels of the input.
    widths
        Channels of each level.
    classes
        Channels of the output.
    """

    def __init__(self, dimensions: int, channels: int, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
        up = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 2]
        norm = (nn.BatchNorm2d, nn.InstanceNorm3d)[dimensions - 2]

        def block(inputs: int, outputs: int) -> nn.Module:
            layers = [
                layer
                for n in (inputs, outputs)
                for layer in (conv(n, outputs, 3, padding=1), norm(outputs, affine=True), nn.ReLU())
            ]
            return nn.Sequential(*layers)

        self.down = nn.ModuleList(block(a, b) for a, b in zip((channels, *widths), widths, strict=False))
        self.pool = (nn.MaxPool2d, nn.MaxPool3d)[dimensions - 2](2)
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(up(b, a, 2, stride=2) for a, b in pairs)
        self.join = nn.ModuleList(block(2 * a, a) for a, _ in pairs)
        self.out = conv(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each position."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], dim=1))
        logits: Tensor = self.out(x)
        return logits


class VariationalAutoencoder(nn.Module):
    """Convolutions down to a latent vector that is drawn, and transposed convolutions up again.

    Parameters
    ----------
    channels, width, latent
        Channels of the image, of the first layer, size of the latent vector.
    """

    def __init__(self, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ReLU()),
            nn.Flatten(),
        )
        self.mean, self.log_variance = nn.Linear(2 * width * 49, latent), nn.Linear(2 * width * 49, latent)
        self.decoder = nn.Sequential(
            *(nn.Linear(latent, 2 * width * 49), nn.ReLU(), nn.Unflatten(1, (2 * width, 7, 7))),
            *(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, channels, 4, 2, 1)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log variance for images (N, channels, 28, 28)."""
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return self.decoder(latent), mean, log_variance


class DenseNet3d(nn.Module):
    """A DenseNet for volumes, of the kind that medical imaging uses.

    Parameters
    ----------
    channels, width, growth
        Channels of the volume, of the first layer, and those that each layer adds.
    layers
        Layers of each block.
    classes
        Number of outputs.
    """

    def __init__(self, channels: int, width: int, growth: int, layers: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU())
        blocks, between = [], []
        for number in layers:
            block = []
            for _ in range(number):
                block.append(
                    nn.Sequential(
                        *(nn.BatchNorm3d(width), nn.ReLU(), nn.Conv3d(width, 4 * growth, 1, bias=False)),
                        *(
                            nn.BatchNorm3d(4 * growth),
                            nn.ReLU(),
                            nn.Conv3d(4 * growth, growth, 3, padding=1, bias=False),
                        ),
                    )
                )
                width += growth
            blocks.append(nn.ModuleList(block))
            half = nn.Conv3d(width, width // 2, 1, bias=False)
            between.append(nn.Sequential(nn.BatchNorm3d(width), nn.ReLU(), half, nn.AvgPool3d(2)))
            width //= 2
        self.blocks, self.between = nn.ModuleList(blocks), nn.ModuleList(between)
        self.norm, self.out = nn.BatchNorm3d(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of volumes (N, channels, D, H, W)."""
        x = self.stem(x)
        for block, between in zip(self.blocks, self.between, strict=True):
            assert isinstance(block, nn.ModuleList)
            for layer in block:
                x = torch.cat([x, layer(x)], dim=1)
            x = between(x)
        logits: Tensor = self.out(torch.relu(self.norm(x)).mean((2, 3, 4)))
        return logits


class TemporalBlock(nn.Module):
    """Two dilated causal convolutions with weight norm, and a residual.

    Parameters
    ----------
    inputs, outputs, dilation
        Channels before and after, and the distance between the taps.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.conv1 = weight_norm(nn.Conv1d(inputs, outputs, 3, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(outputs, outputs, 3, dilation=dilation))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, T) to (N, outputs, T)."""
        y = torch.relu(self.conv2(self.pad(torch.relu(self.conv1(self.pad(x))))))
        return torch.relu(y + self.skip(x))


class LastStep(nn.Module):
    """The last time step of (N, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C)."""
        return x[..., -1]


class Experts(nn.Module):
    """A block of experts whose weights each token gathers by its own routing.

    Parameters
    ----------
    width, inner, number
        Size of the stream, of each expert's hidden layer, number of experts.
    """

    def __init__(self, width: int, inner: int, number: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, number)
        self.up = nn.Parameter(torch.randn(number, width, inner) / width**0.5)
        self.down = nn.Parameter(torch.randn(number, inner, width) / inner**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width) to the same shape."""
        gates, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        hidden = functional.gelu(torch.einsum("nd,nkdh->nkh", x, self.up[chosen]))
        y = torch.einsum("nkh,nkhd->nkd", hidden, self.down[chosen])
        routed: Tensor = x + (y * gates[..., None]).sum(1)
        return routed


class GraphNetwork(nn.Module):
    """Messages between the nodes of a graph, added up by index.

    Parameters
    ----------
    inputs, width, classes
        Features of a node, hidden units, outputs.
    """

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.messages = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.updates = nn.ModuleList(nn.GRUCell(width, width) for _ in range(2))
        self.out = nn.Linear(width, classes)
        edges = torch.arange(24)
        self.register_buffer("source", edges % 8)
        self.register_buffer("target", (edges * 5 + 1) % 8)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the nodes, for features (8, inputs)."""
        assert isinstance(self.source, Tensor)
        assert isinstance(self.target, Tensor)
        h = torch.tanh(self.embed(x))
        for message, update in zip(self.messages, self.updates, strict=True):
            m = torch.relu(message(torch.cat([h[self.source], h[self.target]], dim=-1)))
            h = update(torch.zeros_like(h).index_add(0, self.target, m), h)
        logits: Tensor = self.out(h)
        return logits


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), *_dense(784, 512), *_dense(512, 512), *_dense(512, 256), nn.Linear(256, 10))


def _dense(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.ReLU()]


def _temporal(width: int) -> nn.Module:
    return nn.Sequential(TemporalBlock(4, width, 1), TemporalBlock(width, width, 2), LastStep(), nn.Linear(width, 3))


def _discriminator(width: int) -> nn.Module:
    sizes = (3, width, 2 * width, 4 * width)
    layers = [
        layer for a, b in pairwise(sizes) for layer in (spectral_norm(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.2))
    ]
    return nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(4 * width * 16, 1)))


def _experts() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.GELU(), Experts(64, 128, 4), nn.LayerNorm(64), nn.Linear(64, 10))


WRITTEN: Table = {
    "decoder": Architecture(
        "GPT-style decoder, tied embedding",
        partial(Decoder, 8192, 384, 6, 6, 128),
        tokens(1, 128, below=20),
        partial(Decoder, 20, 16, 4, 2, 8),
        tokens(1, 8, below=20),
    ),
    "lstm": Architecture(
        "LSTM classifier",
        partial(RecurrentClassifier, 8192, 256, 10),
        tokens(1, 64, below=20),
        partial(RecurrentClassifier, 20, 8, 3),
        tokens(1, 5, below=20),
    ),
    "mlp": Architecture("Perceptron", _mlp, images(2, 1, 28, 28)),
    "unet": Architecture(
        "U-Net, BatchNorm",
        partial(UNet, 2, 3, (32, 64, 128, 256), 4),
        images(1, 3, 64, 64),
        partial(UNet, 2, 3, (8, 12, 16), 4),
        images(1, 3, 16, 16),
    ),
    "unet_3d": Architecture(
        "U-Net for volumes, InstanceNorm",
        partial(UNet, 3, 1, (16, 32, 64), 3),
        images(1, 1, 16, 16, 16),
        partial(UNet, 3, 1, (6, 8, 10), 3),
        images(1, 1, 8, 8, 8),
    ),
    "vae": Architecture(
        "Variational autoencoder, three outputs",
        partial(VariationalAutoencoder, 1, 32, 20),
        images(2, 1, 28, 28),
        partial(VariationalAutoencoder, 1, 6, 4),
        images(2, 1, 28, 28),
        least=0.9,
    ),
    "densenet_3d": Architecture(
        "DenseNet for volumes",
        partial(DenseNet3d, 1, 32, 16, (6, 8), 2),
        images(1, 1, 24, 24, 24),
        partial(DenseNet3d, 1, 8, 4, (2, 2), 2),
        images(1, 1, 16, 16, 16),
    ),
    "tcn": Architecture("Temporal convolutions, weight norm", partial(_temporal, 64), images(2, 4, 32)),
    "discriminator": Architecture(
        "Discriminator, spectral norm",
        partial(_discriminator, 64),
        images(2, 3, 32, 32),
        partial(_discriminator, 6),
        images(2, 3, 32, 32),
    ),
    "experts": Architecture("Mixture of experts, gathered weights", _experts, images(16, 20), least=0.98),
    "graph": Architecture("Graph network, added by index", partial(GraphNetwork, 5, 64, 3), images(8, 5)),
}
