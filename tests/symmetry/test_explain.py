from __future__ import annotations

import pytest
import torch
from torch import nn

from c2m3_fl.symmetry.explain import moved_share
from c2m3_fl.symmetry.spec import PermutationSpec


@pytest.fixture(scope="module")
def spec() -> PermutationSpec:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    return PermutationSpec.from_module(net, torch.randn(2, 4), prove=False)


def test_the_share_counts_parameters_that_some_group_moves(spec: PermutationSpec) -> None:
    # 24 + 6 weights and biases, 12 of the norm, 18 of the last layer; its 3 biases stay, statistics do not count.
    assert moved_share(spec) == pytest.approx(60 / 63)


def test_the_table_names_groups_axes_and_what_stays(spec: PermutationSpec) -> None:
    text = spec.explain()
    assert "1 group moves 60 of 63 parameters (95.24%)." in text
    (row,) = (line for line in text.splitlines() if line.startswith("0.out"))
    assert row.split()[1:3] == ["6", "7"]
    assert "0.weight[0], 0.bias[0], 1.weight[0], 1.bias[0] and 3 more" in row
    assert "2.bias (3)" in text
    assert "carries the network's input" in text
    assert "0.weight[1]" in text


def test_a_spec_without_groups_is_explained_too() -> None:
    text = PermutationSpec.from_module(nn.Linear(4, 3), torch.randn(2, 4)).explain()
    assert "0 groups move 0 of 15 parameters (0.00%)." in text
