"""torchvision's networks."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torchvision import models as zoo

from benchmarks.zoo.architecture import Architecture, Example, Table, images

_IMAGE = images(1, 3, 224, 224)
_THUMB = images(1, 3, 64, 64)
_SMALL = images(1, 3, 32, 32)


def _vision(family: str, name: str, small: str | None = None, thumb: Example = _THUMB) -> Architecture:
    return Architecture(family, partial(_make, name), _IMAGE, partial(_make, small or name), thumb)


def _segmentation(family: str, name: str) -> Architecture:
    return Architecture(family, partial(_make, name), images(2, 3, 128, 128), None, images(2, 3, 64, 64))


def _make(name: str) -> nn.Module:
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name in _BACKBONES:
        options["weights_backbone"] = None
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


_BACKBONES = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
_INCEPTION = images(2, 3, 299, 299)
VISION: Table = {
    "alexnet": _vision("AlexNet", "alexnet"),
    "vgg11": _vision("VGG", "vgg11"),
    "vgg11_bn": _vision("VGG with BatchNorm", "vgg11_bn"),
    "resnet50": _vision("ResNet", "resnet50", "resnet18"),
    "wide_resnet50_2": _vision("Wide ResNet", "wide_resnet50_2"),
    "resnext50_32x4d": _vision("ResNeXt", "resnext50_32x4d"),
    "squeezenet1_1": _vision("SqueezeNet", "squeezenet1_1"),
    "densenet121": _vision("DenseNet", "densenet121"),
    "inception_v3": Architecture("Inception v3", partial(_make, "inception_v3"), _INCEPTION, None, _INCEPTION),
    "googlenet": Architecture(
        "GoogLeNet", partial(_make, "googlenet"), images(2, 3, 224, 224), None, images(2, 3, 64, 64)
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
    "vit_b_16": Architecture("Vision Transformer", partial(_make, "vit_b_16"), _IMAGE, _small_vit, _SMALL),
    "swin_t": Architecture("Swin", partial(_make, "swin_t"), _IMAGE, partial(_small_swin, 1), _SMALL),
    "swin_v2_t": Architecture("Swin v2", partial(_make, "swin_v2_t"), _IMAGE, partial(_small_swin, 2), _SMALL),
    "maxvit_t": Architecture("MaxViT", partial(_make, "maxvit_t"), _IMAGE, _small_maxvit, _SMALL),
    "deeplabv3_mobilenet": _segmentation("DeepLab v3, segmentation", "deeplabv3_mobilenet_v3_large"),
    "lraspp_mobilenet": _segmentation("LR-ASPP, segmentation", "lraspp_mobilenet_v3_large"),
}
