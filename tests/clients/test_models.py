"""Networks: right shapes, honest sizes, traceable, and indifferent to the order of their channels."""

import pytest
import torch
from torch import nn

from clients.models import LayerNorm2d, ModelError, build_model

CASES = [
    ("mlp", (1, 8, 8), "layer"),
    ("cnn", (1, 8, 8), "layer"),
    ("resnet20", (1, 8, 8), "layer"),
    ("resnet20", (3, 32, 32), "batch"),
    ("vgg16", (3, 32, 32), "layer"),
    ("torchvision:resnet18", (3, 32, 32), "layer"),
]


@pytest.mark.parametrize(("name", "shape", "norm"), CASES)
def test_every_network_gives_one_output_per_class_and_can_be_exported(
    name: str, shape: tuple[int, int, int], norm: str
) -> None:
    width = 1.0 if name.startswith("torchvision") else 0.25
    network = build_model(name, input_shape=shape, num_classes=7, width=width, norm=norm).eval()  # type: ignore[arg-type]
    inputs = torch.randn(2, *shape)
    expected = network(inputs)
    assert expected.shape == (2, 7)
    torch.testing.assert_close(torch.export.export(network, (inputs,)).module()(inputs), expected)


def test_mlp_has_the_papers_layers_and_gives_log_probabilities() -> None:
    network = build_model("mlp", input_shape=(1, 28, 28), num_classes=10)
    sizes = [(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert sizes == [(784, 256), (256, 512), (512, 512), (512, 256), (256, 10)]
    torch.testing.assert_close(network(torch.randn(3, 1, 28, 28)).exp().sum(dim=1), torch.ones(3))


def test_resnet20_has_twenty_layers_with_weights() -> None:
    network = build_model("resnet20", input_shape=(3, 32, 32), num_classes=10)
    kernels = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(kernels) + 1 == 20


def test_vgg16_has_the_papers_convolutions() -> None:
    network = build_model("vgg16", input_shape=(3, 32, 32), num_classes=10)
    channels = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


def test_a_perceptron_has_the_hidden_layers_that_it_is_named_by() -> None:
    network = build_model("mlp:40-30", input_shape=(1, 5, 4), num_classes=3, width=0.5)
    assert [tuple(p.shape) for p in network.parameters() if p.dim() == 2] == [(20, 20), (15, 20), (3, 15)]
    for name in ("mlp:", "mlp:0", "mlp:8-", "mlp:8x8"):
        with pytest.raises(ModelError, match="widths of the hidden layers"):
            build_model(name, input_shape=(1, 5, 4), num_classes=3)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20", "vgg16", "mlp:64-32"])
def test_width_multiplies_hidden_sizes_only(name: str) -> None:
    shapes = [
        [tuple(p.shape) for p in build_model(name, input_shape=(3, 32, 32), num_classes=10, width=w).parameters()]
        for w in (0.25, 0.5)
    ]
    assert shapes[1][0][0] == 2 * shapes[0][0][0]
    assert shapes[1][-1] == shapes[0][-1] == (10,)


def test_layer_norm_over_channels_commutes_with_their_permutation() -> None:
    norm = LayerNorm2d(6)
    nn.init.normal_(norm.norm.weight)
    nn.init.normal_(norm.norm.bias)
    x, order = torch.randn(2, 6, 3, 3), torch.randperm(6)
    permuted = LayerNorm2d(6)
    permuted.load_state_dict({key: value[order] for key, value in norm.state_dict().items()})
    torch.testing.assert_close(permuted(x[:, order]), norm(x)[:, order])


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"name": "resnet2"}, "resnet20"),
        ({"name": "mlp", "width": 0.0}, "model-width"),
        ({"name": "mlp", "norm": "group"}, "model-norm"),
        ({"name": "vgg16", "input_shape": (3, 28, 28)}, "32x32"),
        ({"name": "torchvision:resnet19"}, "resnet19"),
        ({"name": "torchvision:resnet18", "input_shape": (1, 32, 32)}, "3 channels"),
        ({"name": "torchvision:resnet18", "width": 2.0}, "model-width"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, object], hint: str) -> None:
    with pytest.raises(ModelError, match=hint):
        build_model(**{"input_shape": (3, 32, 32), "num_classes": 10, **options})  # type: ignore[arg-type]
