"""timm's networks."""

from __future__ import annotations

from functools import partial

import timm
from torch import nn

from benchmarks.zoo.architecture import Architecture, Table, images


def _model(family: str, name: str, side: int = 224, least: float = 0.99) -> Architecture:
    return Architecture(family, partial(_make, name), images(1, 3, side, side), least=least)


def _make(name: str) -> nn.Module:
    made: nn.Module = timm.create_model(name, pretrained=False)
    return made


TIMM: Table = {
    "mixer_s32": _model("MLP-Mixer", "mixer_s32_224"),
    "resmlp_12": _model("ResMLP", "resmlp_12_224", least=0.96),
    "deit_tiny": _model("DeiT", "deit_tiny_patch16_224"),
    "mobilenetv4_conv_small": _model("MobileNet v4", "mobilenetv4_conv_small"),
    "repvgg_a0": _model("RepVGG", "repvgg_a0"),
    "ghostnet_100": _model("GhostNet", "ghostnet_100"),
    "edgenext_xx_small": _model("EdgeNeXt", "edgenext_xx_small", 256),
    "poolformer_s12": _model("PoolFormer", "poolformer_s12"),
    "xcit_nano": _model("XCiT", "xcit_nano_12_p16_224"),
    "efficientformerv2_s0": _model("EfficientFormer v2", "efficientformerv2_s0"),
    "levit_128s": _model("LeViT", "levit_128s"),
    "dla34": _model("DLA", "dla34"),
}
