"""A tiny transformer, its adapters, and their training."""

import functools

import torch
from torch import nn

from lora.text import LENGTH, MASK, VOCABULARY, reviews

WIDTH, HEADS, LAYERS, RANK = 32, 2, 2, 8


class LoRALinear(nn.Module):
    """A linear layer that is not trained, and a correction of low rank that is (Hu et al., "LoRA", ICLR 2022)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.lora_a = nn.Parameter(torch.randn(RANK, inputs) / inputs**0.5)
        self.lora_b = nn.Parameter(torch.zeros(outputs, RANK))

    def forward(self, x):
        """Of shape ``(..., outputs)``."""
        return self.base(x) + (x @ self.lora_a.T) @ self.lora_b.T


class Block(nn.Module):
    """Attention and a feed-forward part, both with adapters."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = LoRALinear(WIDTH, 3 * WIDTH), LoRALinear(WIDTH, WIDTH)
        self.up, self.down = LoRALinear(WIDTH, 2 * WIDTH), LoRALinear(2 * WIDTH, WIDTH)

    def forward(self, x):
        """Of the input's shape ``(N, LENGTH, WIDTH)``."""
        heads = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.out(mixed)
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Class scores of a review."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 2)

    def hidden(self, tokens):
        """Of shape ``(N, LENGTH, WIDTH)``."""
        x = self.words(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens):
        """Class scores, shape ``(N, 2)``."""
        return self.head(self.hidden(tokens).mean(1))


def is_adapter(name):
    """Whether a tensor is trained and sent: the adapters, and the head."""
    return "lora_" in name or name.startswith("head.")


@functools.cache
def _pretrained():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, guess = Transformer(), nn.Linear(WIDTH, len(VOCABULARY))
        tokens, _ = reviews(2000, seed=100)
        optimizer = torch.optim.Adam([*model.parameters(), *guess.parameters()], lr=3e-3)
        for _ in range(15):
            for part in torch.randperm(len(tokens)).split(64):
                hide = torch.rand(len(part), LENGTH) < 0.15
                scores = guess(model.hidden(tokens[part].masked_fill(hide, MASK)))
                optimizer.zero_grad()
                nn.functional.cross_entropy(scores[hide], tokens[part][hide]).backward()
                optimizer.step()
        fresh = Transformer().state_dict()
    return {name: fresh[name] if is_adapter(name) else tensor for name, tensor in model.state_dict().items()}


def build():
    """The network that everybody has: pre-trained to guess masked words, its adapters untrained."""
    model = Transformer()
    model.load_state_dict(_pretrained())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
    return model


def adapters(model):
    """What is sent."""
    return {name: tensor for name, tensor in model.state_dict().items() if is_adapter(name)}


def train(model, tokens, labels, epochs, lr):
    """Train the adapters and the head; the last batch's loss."""
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for part in torch.randperm(len(tokens), generator=generator).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(tokens[part]), labels[part])
            loss.backward()
            optimizer.step()
    return loss.item()


def accuracy(model, tokens, labels):
    """Share of reviews whose class is right."""
    model.eval()
    with torch.no_grad():
        return (model(tokens).argmax(1) == labels).float().mean().item()
