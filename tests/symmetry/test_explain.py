from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from c2m3_fl.symmetry.explain import moved_share, shortcomings
from c2m3_fl.symmetry.groups import NOT_REACHED
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


def test_a_network_that_moves_well_has_no_shortcomings(spec: PermutationSpec) -> None:
    assert shortcomings(spec) == []


def test_no_group_at_all_is_told_with_the_reasons() -> None:
    (told,) = shortcomings(PermutationSpec.from_module(nn.Linear(4, 3), torch.randn(2, 4)))
    assert told.startswith("No permutation group was found")
    assert "weight[0] (carries the network's output)" in told


class Autoencoder(nn.Module):
    """Its forward is its encoder, as in many an example."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def test_parameters_that_forward_does_not_reach_are_told() -> None:
    spec = PermutationSpec.from_module(Autoencoder(), torch.randn(2, 8))
    idle = {pin.what for pin in spec.pins if pin.reason == NOT_REACHED}
    assert idle == {"decoder.0.weight", "decoder.0.bias", "decoder.2.weight", "decoder.2.bias"}
    reached, half = shortcomings(spec)
    assert "does not reach 52.1% of the parameters (decoder.0.weight, " in reached
    assert half.startswith("The groups move 46.5% of the parameters")


def test_less_than_half_is_told_with_the_largest_reason_first() -> None:
    net = nn.Sequential(
        *(nn.Linear(4, 60), nn.Unflatten(1, (1, 60)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(116, 2))
    )
    (told,) = shortcomings(PermutationSpec.from_module(net, torch.randn(2, 4)))
    assert told.startswith("The groups move 44.3% of the parameters; the rest stays.")
    assert "First reasons: 0.weight[0] (spatial positions of a convolution)" in told
