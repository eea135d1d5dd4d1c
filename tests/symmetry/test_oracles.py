"""Tracing reproduces what was written by hand, up to the names of groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from c2m3_fl.symmetry.spec import PermutationSpec
from clients import models
from tests.symmetry import oracles

CASES: dict[str, tuple[nn.Module, tuple[int, ...], PermutationSpec]] = {
    "MLP": (models.MLP(64, (9, 8, 8, 7), 10), (2, 1, 8, 8), oracles.mlp(64, (9, 8, 8, 7), 10)),
    **{
        f"ResNet20 {norm} {width}": (
            models.ResNet20(3, 10, width, norm),
            (2, 3, 16, 16),
            oracles.resnet20(3, 10, width, norm),
        )
        for norm in models.NORMS
        for width in (0.5, 1)
    },
    **{
        f"VGG16 {norm}": (
            models.VGG16((3, 64, 64), 10, 0.125, norm),
            (1, 3, 64, 64),
            oracles.vgg16(3, 10, 0.125, norm, area=4),
        )
        for norm in models.NORMS
    },
}


@pytest.mark.parametrize("name", CASES)
def test_tracing_reproduces_the_spec_written_by_hand(name: str) -> None:
    module, shape, oracle = CASES[name]
    traced = PermutationSpec.from_module(module, torch.randn(shape))
    assert oracles.renamed(traced) == oracles.renamed(oracle)
