"""Permutation groups of well-known networks, found by tracing: makes ``docs/architectures.md``.

Run ``python -m benchmarks.architectures``; names of networks as arguments limit it to those and print their rows only.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models as zoo

from c2m3_fl.symmetry.explain import moved_share
from c2m3_fl.symmetry.prove import largest_change
from c2m3_fl.symmetry.spec import PermutationSpec

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"


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


@dataclass(frozen=True)
class Architecture:
    """A network of the table, and a small version of it for tests.

    Attributes
    ----------
    family
        What it stands for.
    make
        Factory of the network.
    shape
        Shape of an example input.
    small
        Factory of the small version.
    small_shape
        Shape of its input.
    below
        For networks on tokens, the size of the vocabulary.
    """

    family: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    small: Callable[[], nn.Module]
    small_shape: tuple[int, ...]
    below: int | None = None

    def example(self, shape: Sequence[int]) -> Tensor:
        """A random input."""
        generator = torch.Generator().manual_seed(0)
        if self.below is not None:
            return torch.randint(self.below, tuple(shape), generator=generator)
        return torch.randn(tuple(shape), generator=generator)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name, family
        Which network, and what it stands for.
    parameters
        Number of parameters.
    groups
        Number of permutation groups.
    share
        Share of the parameters that lie in a tensor that some group moves.
    change
        Largest change of an output under random permutations of all groups, relative to the largest output.
    seconds
        CPU time to trace and prove.
    still
        Parameters that nothing moves.
    """

    name: str
    family: str
    parameters: int
    groups: int
    share: float
    change: float
    seconds: float
    still: tuple[str, ...]


_IMAGE = (1, 3, 224, 224)
_THUMB = (1, 3, 64, 64)


def _vision(family: str, name: str, small: str | None = None, thumb: tuple[int, ...] = _THUMB) -> Architecture:
    return Architecture(family, partial(_make, name), _IMAGE, partial(_make, small or name), thumb)


def _make(name: str) -> nn.Module:
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = zoo.get_model(name, weights=None, **options)
    return network


def _small_vit() -> nn.Module:
    network: nn.Module = zoo.VisionTransformer(
        32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=10
    )
    return network


def _small_swin(version: int) -> nn.Module:
    blocks: dict[str, Any] = {"block": zoo.swin_transformer.SwinTransformerBlockV2} if version == 2 else {}
    merging = zoo.swin_transformer.PatchMergingV2 if version == 2 else zoo.swin_transformer.PatchMerging
    network: nn.Module = zoo.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10, downsample_layer=merging, **blocks
    )
    return network


def _small_maxvit() -> nn.Module:
    network: nn.Module = zoo.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.1, num_classes=10)
    return network


_INCEPTION = (2, 3, 299, 299)
ARCHITECTURES: dict[str, Architecture] = {
    "alexnet": _vision("AlexNet", "alexnet"),
    "vgg11": _vision("VGG", "vgg11"),
    "vgg11_bn": _vision("VGG with BatchNorm", "vgg11_bn"),
    "resnet50": _vision("ResNet", "resnet50", "resnet18"),
    "wide_resnet50_2": _vision("Wide ResNet", "wide_resnet50_2"),
    "resnext50_32x4d": _vision("ResNeXt", "resnext50_32x4d"),
    "squeezenet1_1": _vision("SqueezeNet", "squeezenet1_1"),
    "densenet121": _vision("DenseNet", "densenet121"),
    "inception_v3": Architecture(
        "Inception v3", partial(_make, "inception_v3"), _INCEPTION, partial(_make, "inception_v3"), _INCEPTION
    ),
    "googlenet": Architecture(
        "GoogLeNet", partial(_make, "googlenet"), (2, *_IMAGE[1:]), partial(_make, "googlenet"), (2, *_THUMB[1:])
    ),
    "mobilenet_v2": _vision("MobileNet v2", "mobilenet_v2"),
    "mobilenet_v3_large": _vision("MobileNet v3", "mobilenet_v3_large", "mobilenet_v3_small"),
    "shufflenet_v2_x1_0": _vision("ShuffleNet v2", "shufflenet_v2_x1_0", "shufflenet_v2_x0_5"),
    "mnasnet1_0": _vision("MNASNet", "mnasnet1_0", "mnasnet0_5"),
    "efficientnet_b0": _vision("EfficientNet", "efficientnet_b0"),
    "efficientnet_v2_s": _vision("EfficientNet v2", "efficientnet_v2_s"),
    "regnet_x_400mf": _vision("RegNet X", "regnet_x_400mf"),
    "regnet_y_400mf": _vision("RegNet Y", "regnet_y_400mf"),
    "convnext_tiny": _vision("ConvNeXt", "convnext_tiny"),
    "vit_b_16": Architecture("Vision Transformer", partial(_make, "vit_b_16"), _IMAGE, _small_vit, (1, 3, 32, 32)),
    "swin_t": Architecture("Swin", partial(_make, "swin_t"), _IMAGE, partial(_small_swin, 1), (1, 3, 32, 32)),
    "swin_v2_t": Architecture("Swin v2", partial(_make, "swin_v2_t"), _IMAGE, partial(_small_swin, 2), (1, 3, 32, 32)),
    "maxvit_t": Architecture("MaxViT", partial(_make, "maxvit_t"), _IMAGE, _small_maxvit, (1, 3, 32, 32)),
    "decoder": Architecture(
        "GPT-style decoder, tied embedding",
        partial(Decoder, 8192, 384, 6, 6, 128),
        (1, 128),
        partial(Decoder, 20, 16, 4, 2, 8),
        (1, 8),
        below=20,
    ),
    "lstm": Architecture(
        "LSTM classifier",
        partial(RecurrentClassifier, 8192, 256, 10),
        (1, 64),
        partial(RecurrentClassifier, 20, 8, 3),
        (1, 5),
        below=20,
    ),
}


def measure(name: str) -> Row:
    """Trace one network of the table, prove its groups and permute them all at once."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    network, example = architecture.make(), architecture.example(architecture.shape)
    started = time.process_time()
    spec = PermutationSpec.from_module(network, example)
    seconds = time.process_time() - started
    parameters = sum(parameter.numel() for parameter in network.parameters())
    moved = {*spec.moved_tensors(), *spec.carried}
    still = tuple(tensor for tensor in spec.tensors if tensor not in moved)
    change = largest_change(spec, network, (example,), {})
    return Row(name, architecture.family, parameters, len(spec.groups), moved_share(spec), change, seconds, still)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | family | parameters | groups | share moved | largest change | seconds | stays |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        more = f" and {len(row.still) - 3} more" if len(row.still) > 3 else ""
        still = ", ".join(f"`{name}`" for name in row.still[:3]) + more
        lines.append(
            f"| {row.name} | {row.family} | {row.parameters:,} | {row.groups} | {row.share:.2%} | {row.change:.0e} "
            f"| {row.seconds:.1f} | {still or 'nothing'} |"
        )
    return "\n".join(lines)


_TEXT = """# Architectures

<!-- Made by `python -m benchmarks.architectures`; tests compare it with what tracing finds. -->

Permutation groups that `PermutationSpec.from_module` finds in well-known networks at random weights.

- **groups**: number of groups, each permuted independently of the others.
- **share moved**: share of the parameters, counted by element, in a tensor that some group moves, rounded.
- **largest change**: of any output under random permutations of all groups at once, relative to the largest output, in
  double precision, with all parameters and running statistics made generic.
- **seconds**: CPU time to trace and to prove, on one thread.
- **stays**: parameters that no group moves. The output layer's bias has the order of the classes.

{table}

What moves less than it could:

- *ShuffleNet v2*: each unit interleaves two halves and splits the result at its middle, so positions of the stream
  are tied to one another again and again. What stays in the later units of a stage are the norms behind the last
  convolution of a branch; the convolutions themselves move by the groups inside of the branch.
- *Attention*: the order of the dimensions inside a head is one group shared by all heads of a layer. Separate orders for
  each head are a symmetry as well, but do not combine with a permutation of the heads in a spec's axes.
- *Grouped convolutions* (ResNeXt, RegNet): likewise, channels inside of a group are permuted alike in all groups.
- *Continuous symmetries* (rotations between q and k, scales between layers) are no permutations and not listed.

Made with {versions}, {machine}.
"""


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    machine = f"{platform.system()} {platform.machine()}"
    return _TEXT.format(table=table(rows), versions=versions, machine=machine)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show progress, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"some of: {', '.join(ARCHITECTURES)}")
    names = parser.parse_args(arguments).networks
    torch.set_num_threads(1)
    rows = []
    for name in names or ARCHITECTURES:
        rows.append(measure(name))
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    if names:
        print(table(rows))
    else:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
