"""Networks whose symmetries are hard to see: traced, permuted at random, and brought back by `align`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.mobilenetv2 import InvertedResidual

from c2m3_fl import PermutationSpec, align
from clients.models import build_model

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """One block of a vision transformer on four tokens: heads, head dimensions, a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(768, 24)
        self.block = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, norm_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(len(x), 4, 768)
        logits: Tensor = self.head(self.block(self.embed(tokens)).mean(dim=1))
        return logits


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(growth_rate=6, block_config=(2, 2), num_init_features=8, num_classes=5)


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        InvertedResidual(8, 12, stride=2, expand_ratio=4),
        InvertedResidual(12, 12, stride=1, expand_ratio=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def of_this_project(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: build_model(name, input_shape=(3, 32, 32), num_classes=5, **options)  # type: ignore[arg-type]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "depthwise convolutions": mobilenet,
    "attention heads": Attention,
    "concatenation": densenet,
    "mlp": of_this_project("mlp", width=0.1),
    "cnn": of_this_project("cnn", width=0.5),
    "resnet20 with layer norm": of_this_project("resnet20", width=0.5),
    "resnet20 with batch norm": of_this_project("resnet20", width=0.5, norm="batch"),
    "vgg16": of_this_project("vgg16", width=0.125),
}


@cache
def network_and_spec(name: str) -> tuple[nn.Module, PermutationSpec]:
    """A network whose norms, biases and running statistics are its own, as after training."""
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(0.1 * torch.rand_like(tensor))
    return network, PermutationSpec.from_module(network, IMAGES)


@pytest.mark.parametrize("name", NETWORKS)
def test_mapping_keeps_the_function_in_single_precision(name: str) -> None:
    network, spec = network_and_spec(name)
    with torch.no_grad():
        before = network(IMAGES)
        mapped = spec.apply(network.state_dict(), spec.random(torch.Generator().manual_seed(2)))
        after = functional_call(network, mapped, (IMAGES,))
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("clients", [2, 3, 5, 8])
def test_planted_permutations_are_recovered(name: str, clients: int) -> None:
    network, spec = network_and_spec(name)
    generator = torch.Generator().manual_seed(clients)
    copies = [spec.apply(network.state_dict(), spec.random(generator)) for _ in range(clients)]
    alignment = align(copies, spec, device="cpu")
    first, *others = alignment.apply(copies)
    for other in others:
        for key, tensor in first.items():
            assert torch.equal(tensor, other[key]), key
    optimum = (
        clients
        * (clients - 1)
        * sum(float(tensor.double().square().sum()) for key, tensor in first.items() if key not in spec.carried)
    )
    assert alignment.objective == pytest.approx(optimum, rel=1e-5)
