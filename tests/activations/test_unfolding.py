"""Rows of layers as matrices: the same rows in every network, and the inputs that a row is a linear function of."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from c2m3_fl.activations.rows import RowSample
from c2m3_fl.activations.unfolding import fan_in, input_rows, is_matrix, set_weight_matrices, weight_matrices

LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "linear at positions": (lambda: nn.Linear(5, 7), (3, 4, 6, 5)),
    "linear without a batch": (lambda: nn.Linear(5, 7), (5,)),
    "1d, same, groups": (lambda: nn.Conv1d(4, 8, 3, padding="same", groups=4), (3, 4, 9)),
    "2d, stride, groups": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), (3, 4, 9, 8)),
    "2d, dilation, circular": (lambda: nn.Conv2d(4, 6, (3, 2), 1, (2, 1), 2, padding_mode="circular"), (3, 4, 9, 8)),
    "2d without a batch": (lambda: nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "3d, reflect": (lambda: nn.Conv3d(2, 3, 2, stride=2, padding_mode="reflect", padding=1), (2, 2, 5, 4, 6)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 4, 3), (3, 4, 5)),
    "transposed 2d, groups, dilation": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        (3, 4, 5, 6),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 4, 2, (1, 2, 3)), (3, 2, 3, 4, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rows", [1, 20, 10_000])
def test_a_row_is_the_weight_times_its_inputs(name: str, rows: int, device: torch.device) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().double().to(device)
    x = torch.randn(shape, dtype=torch.float64, device=device)
    with torch.no_grad():
        output = layer(x)
    batched = x.dim() == layer.weight.dim() or (isinstance(layer, nn.Linear) and x.dim() > 1)
    examples = shape[0] if batched else 1
    axis = -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.dim()
    sample = RowSample.of(rows, examples)
    kept = sample.select(output, axis, 0, examples)
    places = sample.indices(0, examples, output.numel() // output.shape[axis])
    assert len(places.unique()) == len(places) == min(len(kept), output.numel() // output.shape[axis])
    inputs = input_rows(layer, x, output, places)
    matrices = weight_matrices(layer)
    assert inputs.shape[2] == matrices.shape[2] == fan_in(layer)
    products = torch.einsum("gof,rgf->rgo", matrices, inputs).flatten(1) + layer.bias.detach()
    torch.testing.assert_close(products, kept, rtol=1e-12, atol=1e-12)
    before = layer.weight.detach().clone()
    set_weight_matrices(layer, 2 * matrices)
    assert torch.equal(layer.weight, 2 * before)


def test_what_is_no_matrix() -> None:
    class Own(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) ** 2

    assert is_matrix(nn.Linear(2, 2, bias=False))
    assert is_matrix(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2))
    assert is_matrix(nn.ConvTranspose2d(4, 4, 2, bias=False))
    for layer in (
        Own(2, 2),
        nn.Bilinear(2, 2, 2),
        nn.LayerNorm(2),
        nn.Embedding(3, 2),
        nn.ConvTranspose2d(4, 4, 2, groups=2, bias=False),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ):
        assert not is_matrix(layer), layer


@given(
    examples=st.integers(1, 30),
    positions=st.integers(1, 40),
    wanted=st.integers(1, 400),
    cuts=st.lists(st.integers(1, 29), max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_the_rows_do_not_depend_on_the_batches(examples: int, positions: int, wanted: int, cuts: list[int]) -> None:
    sample = RowSample.of(wanted, examples)
    values = torch.arange(examples * positions).view(examples, 1, positions)
    whole = sample.select(values, 1, 0, examples).flatten()
    places = [0, *sorted({cut for cut in cuts if cut < examples}), examples]
    parts = [
        sample.select(values[first:last], 1, first, last - first).flatten()
        for first, last in itertools.pairwise(places)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique()) == len(whole)
    assert len(whole) >= min(wanted, examples * positions)
    assert len(whole) < wanted + examples
    counts = torch.bincount((whole / positions).long(), minlength=examples)
    assert set(counts.tolist()) <= ({0, 1} if wanted < examples else {min(positions, -(-wanted // examples))})
