"""Tiny networks in the shapes of Flower's examples: what they take, what they give, how their tensors are called."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 4
SIDE = 8
FEATURES = 8
TOKENS, LENGTH = 20, 6


class ConvNet(nn.Module):
    """The quickstart's: two convolutions, two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 12, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(12 * 4, 24), nn.Linear(24, 16)
        self.fc3 = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x))).flatten(1)
        result: Tensor = self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(x)))))
        return result


class ModelOutput(OrderedDict[str, Any]):
    """A mapping whose parts are attributes too, as Hugging Face's outputs are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class TextClassifier(nn.Module):
    """A transformer of one layer with keyword inputs, whose output holds the loss where labels are given."""

    def __init__(self, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(TOKENS, width), nn.Embedding(LENGTH, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.rise, self.fall = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> ModelOutput:
        x = self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        mask = None if attention_mask is None else attention_mask[:, None, :].bool()
        x = x + functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), mask)
        x = x + self.fall(functional.gelu(self.rise(self.norm(x))))
        output = ModelOutput(logits=self.classifier(self.dropout(x.mean(1))), hidden_states=(x,))
        if labels is not None:
            output["loss"] = functional.cross_entropy(output["logits"], labels)
        return output


class LightningLike(nn.Module):
    """A network with its own training step, optimiser and hooks, in the manner of a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU(), nn.Linear(24, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, FEATURES))
        self.batches_seen = 0
        self.encoder.register_forward_hook(lambda module, inputs, output: None)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.decoder(self.encoder(x))
        return result

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.on_train_batch_start(batch, batch_idx)
        return functional.mse_loss(self(batch), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        self.batches_seen += 1


class IncomeClassifier(nn.Module):
    """Raw features, one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.output = nn.Linear(FEATURES, 24), nn.Linear(24, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.output(functional.relu(self.layer2(functional.relu(self.layer1(x)))))
        return result


class VariationalAutoencoder(nn.Module):
    """Three outputs, the first of them a draw."""

    def __init__(self, code: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU())
        self.fc1, self.fc2, self.fc3 = nn.Linear(24, code), nn.Linear(24, code), nn.Linear(code, 24)
        self.decoder = nn.Sequential(nn.ReLU(), nn.Linear(24, FEATURES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, spread = self.fc1(hidden), self.fc2(hidden)
        code = mean + torch.randn_like(mean) * (spread / 2).exp()
        return self.decoder(self.fc3(code)), mean, spread


class PatchTransformer(nn.Module):
    """A vision transformer: a backbone that nobody trains, and heads that are trained and sent."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(1, width, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + (SIDE // 4) ** 2, width))
        self.encoder = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True)
        self.heads = nn.Sequential(OrderedDict(pre=nn.Linear(width, 32), act=nn.ReLU(), head=nn.Linear(32, CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], 1) + self.positions
        result: Tensor = self.heads(self.encoder(tokens)[:, 0])
        return result


class NormalisedNet(nn.Module):
    """FedBN's: the norms' tensors stay with the clients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc1, self.fc2, self.fc3 = nn.Linear(8 * 16, 24), nn.Linear(24, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 2).flatten(1)
        result: Tensor = self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(x)))))
        return result


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(
                norm1=nn.BatchNorm2d(channels),
                relu1=nn.ReLU(),
                conv1=nn.Conv2d(channels, 2 * growth, 1, bias=False),
                norm2=nn.BatchNorm2d(2 * growth),
                relu2=nn.ReLU(),
                conv2=nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


class DenseNet(nn.Module):
    """MONAI's: concatenation, BatchNorm, global pooling."""

    def __init__(self, start: int = 8, growth: int = 6) -> None:
        super().__init__()
        middle = (start + 2 * growth) // 2
        self.features = nn.Sequential(
            nn.Conv2d(1, start, 3, padding=1, bias=False),
            _DenseLayer(start, growth),
            _DenseLayer(start + growth, growth),
            nn.BatchNorm2d(start + 2 * growth),
            nn.ReLU(),
            nn.Conv2d(start + 2 * growth, middle, 1, bias=False),
            nn.AvgPool2d(2),
            _DenseLayer(middle, growth),
            nn.BatchNorm2d(middle + growth),
        )
        self.class_layers = nn.Sequential(
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(middle + growth, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.class_layers(self.features(x))
        return result
