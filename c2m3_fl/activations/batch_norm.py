"""BatchNorm by its running statistics: an affine map of its input, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from c2m3_fl.activations.moments import Moments, Statistics


def set_running_statistics(layer: nn.Module, inputs: Moments) -> None:
    """Set BatchNorm's running statistics to those of its inputs.

    As in PyTorch's training mode, ``running_var`` is the unbiased variance. ``num_batches_tracked`` stays: it counts
    the batches the clients have trained on.
    """
    running_mean, running_var = _running(layer)
    running_mean.copy_(inputs.mean)
    running_var.copy_(inputs.variance * (inputs.count / max(1, inputs.count - 1)))


def batch_norm_output(layer: nn.Module, inputs: Moments) -> Moments:
    """Moments of the output of a BatchNorm in evaluation mode: an affine map of its input, channel by channel."""
    running_mean, running_var = _running(layer)
    gain = torch.rsqrt(running_var.double() + _eps(layer))
    offset = torch.zeros_like(gain)
    if isinstance(layer.weight, Tensor):
        gain = gain * layer.weight.double()
    if isinstance(layer.bias, Tensor):
        offset = layer.bias.double()
    return Moments(inputs.count, gain * (inputs.mean - running_mean.double()) + offset, gain.square() * inputs.variance)


def batch_norm_input(layer: nn.Module, output: Statistics) -> Statistics | None:
    """Statistics of the input that gave a BatchNorm's output, or None where a channel's weight is zero."""
    running_mean, running_var = _running(layer)
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    gain = layer.weight.double() * torch.rsqrt(running_var.double() + _eps(layer))
    if bool((gain == 0).any()):
        return None
    return Statistics((output.mean - layer.bias.double()) / gain + running_mean.double(), output.std / gain.abs())


def _running(layer: nn.Module) -> tuple[Tensor, Tensor]:
    running_mean, running_var = layer.running_mean, layer.running_var
    assert isinstance(running_mean, Tensor)
    assert isinstance(running_var, Tensor)
    return running_mean, running_var


def _eps(layer: nn.Module) -> float:
    eps = layer.eps
    assert isinstance(eps, float)
    return eps
