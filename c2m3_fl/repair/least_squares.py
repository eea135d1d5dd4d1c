r"""Least squares in the universe: a layer's weights anew, so that it does on its own inputs what the clients did on theirs.

Where REPAIR restores two numbers per channel, a matrix is fitted to all of them. Let :math:`x_i` be the merged network's
inputs of a layer at row i (an example and a position), :math:`W` its averaged weights, and :math:`t_i` the weighted mean of
the mapped clients' outputs of that layer at the same row. The layer gets

.. math:: \arg\min_{V, c} \sum_i \|V x_i + c - t_i\|^2 + \lambda \|V - W\|^2

with :math:`\lambda` relative to the mean diagonal of the inputs' Gram matrix. For two networks this is the second half of
PLeaS (Nasery, Hayase, Koh and Oh, "PLeaS: Merging Models with Permutations and Least Squares", CVPR 2025), and a sibling of
RegMean (Jin, Ren, Preotiuc-Pietro and Cheng, ICLR 2023), which takes the clients' inputs in place of the merged network's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from c2m3_fl.activations.network import Network
from c2m3_fl.activations.recording import Outputs
from c2m3_fl.activations.sites import Site, channel_norms
from c2m3_fl.activations.unfolding import fan_in, set_weight_matrices, weight_matrices

LEAST_ROWS = 8192
ROWS_PER_INPUT = 8

_CHUNK = 1024
"""Rows whose products are summed in single precision; their sums are in double."""


def fit(inputs: Tensor, residuals: Tensor, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor]:
    """Change of a layer's weights and bias that comes closest to making up for residuals.

    Parameters
    ----------
    inputs
        Shape ``(rows, groups, inputs)``.
    residuals
        Goal less output, shape ``(rows, groups, outputs)``.
    ridge
        Penalty on the change's square, relative to the mean diagonal of the inputs' Gram matrix.
    intercept
        Whether the layer has a bias, which is not penalised.

    Returns
    -------
    tuple of Tensor
        Shapes ``(groups, outputs, inputs)`` and ``(groups, outputs)``, float64. Inputs that do not vary change nothing but
        the bias.

    Notes
    -----
    Of the Gram matrices of rows and of inputs the smaller one is solved with, by Cholesky in double precision.
    """
    x, y = inputs.transpose(0, 1), residuals.transpose(0, 1)
    groups, rows, width = x.shape
    offset, mean = x.new_zeros((groups, 1, width)), y.new_zeros((groups, 1, y.shape[2]), dtype=torch.float64)
    if intercept:
        offset = x.double().mean(1, keepdim=True)
        mean = y.double().mean(1, keepdim=True)
    x, y = (x - offset).to(x.dtype), (y - mean).to(y.dtype)
    if rows < width:
        x, y = x.double(), y.double()
        gram = x @ x.mT
        penalty = _penalty(gram, ridge, width)
        change = (x.mT @ _solved(gram, penalty, y)).mT
    else:
        gram, cross = _products(x, x), _products(x, y)
        change = _solved(gram, _penalty(gram, ridge, width), cross).mT
    return change, (mean - offset.double() @ change.mT).squeeze(1) if intercept else mean.squeeze(1)


def _penalty(gram: Tensor, ridge: float, width: int) -> Tensor:
    """Shape ``(groups, 1)``; 1 where inputs do not vary, whose change is then zero."""
    penalty = ridge * gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) / width
    return torch.where(penalty > 0, penalty, 1.0)


def _solved(gram: Tensor, penalty: Tensor, right: Tensor) -> Tensor:
    regular = gram.clone()
    regular.diagonal(dim1=1, dim2=2).add_(penalty)
    return torch.cholesky_solve(right, torch.linalg.cholesky(regular))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """``a.mT @ b`` in double precision, of products in the tensors' own over a few rows each."""
    total = torch.zeros((a.shape[0], a.shape[2], b.shape[2]), dtype=torch.float64, device=a.device)
    for left, right in zip(torch.split(a, _CHUNK, 1), torch.split(b, _CHUNK, 1), strict=True):
        total += left.mT @ right
    return total


def wanted_rows(network: Network, sites: Sequence[Site]) -> dict[str, int]:
    """Per site that can be fitted how many rows of the clients' outputs are to be recorded."""
    return {
        site.name: max(LEAST_ROWS, ROWS_PER_INPUT * fan_in(network.layer(site))) for site in sites if site.is_matrix
    }


def targets(outputs: Sequence[Mapping[str, Outputs]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Per site the weighted mean of the clients' outputs, shape ``(rows, channels)``; none where their rows differ."""
    found = {}
    for site, first in outputs[0].items():
        samples = [client[site].values for client in outputs if site in client]
        if len(samples) == len(outputs) and all(each.shape == first.values.shape for each in samples):
            total = torch.zeros_like(first.values, dtype=torch.float64)
            for weight, sample in zip(weights, samples, strict=True):
                total += weight * sample.double()
            found[site] = (total / sum(weights)).to(first.values.dtype)
    return found


def refit(layer: nn.Module, inputs: Tensor, outputs: Tensor, target: Tensor, ridge: float) -> None:
    """Fit a layer to a target, in place.

    Parameters
    ----------
    layer
        For which `c2m3_fl.activations.unfolding.is_matrix` holds.
    inputs
        Of some rows, shape ``(rows, groups, inputs)``.
    outputs, target
        What it makes of them, and what it should, shape ``(rows, channels)``.
    ridge
        See `fit`.
    """
    weight = weight_matrices(layer)
    residuals = (target - outputs).view(len(outputs), len(weight), -1)
    bias = layer.bias
    change, shift = fit(inputs, residuals, ridge, intercept=isinstance(bias, Tensor))
    set_weight_matrices(layer, weight.double() + change)
    if isinstance(bias, Tensor):
        with torch.no_grad():
            bias.copy_(bias.double() + shift.flatten())


def rescale(layer: nn.Module, norms: Tensor) -> None:
    """Scale each channel's weights to a norm, shape ``(channels,)``, and its bias with them, in place."""
    found = channel_norms(layer)
    scale = torch.where(found > 0, norms.to(found.device) / torch.where(found > 0, found, 1.0), 1.0)
    matrices, bias = weight_matrices(layer), layer.bias
    set_weight_matrices(layer, matrices.double() * scale.view(*matrices.shape[:2], 1))
    if isinstance(bias, Tensor):
        with torch.no_grad():
            bias.copy_(bias.double() * scale)
