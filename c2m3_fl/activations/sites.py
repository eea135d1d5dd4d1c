"""Where a network can be repaired without a new parameter: its sites.

A site is a layer that ends in a scale and a shift of its own per output channel. The affine correction of its output,
``y -> scale * y + shift``, then folds into parameters that exist:

- a linear or convolutional layer with a bias: ``weight * scale`` and ``bias * scale + shift``;
- a norm with affine parameters: the same of its ``weight`` and ``bias``.

A layer without a bias is no site: the norm that follows it is. BatchNorm has running statistics besides, which are
recomputed whether it has affine parameters or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from c2m3_fl.activations.unfolding import is_matrix, weight_axis

_AXES: dict[type[nn.Module], int] = {
    nn.Linear: -1,
    nn.Bilinear: -1,
    nn.Conv1d: -2,
    nn.Conv2d: -3,
    nn.Conv3d: -4,
    nn.ConvTranspose1d: -2,
    nn.ConvTranspose2d: -3,
    nn.ConvTranspose3d: -4,
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 1,
    nn.BatchNorm3d: 1,
    nn.SyncBatchNorm: 1,
    nn.GroupNorm: 1,
    nn.InstanceNorm1d: -2,
    nn.InstanceNorm2d: -3,
    nn.InstanceNorm3d: -4,
    nn.LayerNorm: -1,
}
"""Axis of the output channels; negative ones hold for inputs without a batch axis too."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Site:
    """A layer whose output statistics are measured and corrected.

    Attributes
    ----------
    name
        Name of the module in the network.
    axis
        Axis of its output that holds the channels.
    calls
        How often one forward pass calls it. Statistics are pooled over the calls.
    affine
        Whether a correction can be folded into its parameters. If not, it is a BatchNorm of which only the running
        statistics are recomputed, or a matrix without a bias.
    is_output
        Whether it is the last layer with parameters that the forward pass calls, such as a classifier's.
    is_matrix
        Whether it is a matrix that can be fitted anew (see `c2m3_fl.activations.unfolding`).
    normalised
        Whether a BatchNorm takes its output, which undoes any scale that a channel has.
    channels
        A tensor of the state dict, and its axis, whose entries are the output's channels.
    """

    name: str
    axis: int
    calls: int
    affine: bool
    is_output: bool
    is_matrix: bool
    normalised: bool
    channels: tuple[str, int]

    @classmethod
    def of(
        cls, name: str, layer: nn.Module, axis: int, calls: int, *, is_output: bool = False, normalised: bool = False
    ) -> Site:
        """The site that a layer is."""
        affine = has_affine(layer)
        tensor = f"{name}.{'bias' if affine else 'weight'}".removeprefix(".")
        channels = tensor, 0 if affine else weight_axis(layer)
        return cls(name, axis, calls, affine, is_output, is_matrix(layer), normalised, channels)


def is_candidate(layer: nn.Module) -> bool:
    """Whether the layer may turn out to be a site."""
    return next(layer.children(), None) is None and (
        has_affine(layer) or has_running_statistics(layer) or is_matrix(layer)
    )


def has_affine(layer: nn.Module) -> bool:
    """Whether the layer holds a weight and a bias, as parameters of its own, whose channels correspond."""
    own = dict(layer.named_parameters(recurse=False))
    if "weight" not in own or "bias" not in own or own["bias"].dim() == 0 or own["weight"].dim() == 0:
        return False
    return isinstance(layer, _TRANSPOSED) or own["weight"].shape[0] == own["bias"].shape[0]


def has_running_statistics(layer: nn.Module) -> bool:
    """Whether the layer is a BatchNorm that normalises by running statistics."""
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def channels(layer: nn.Module) -> int:
    """Number of output channels."""
    if isinstance(layer, _BatchNorm):
        return int(layer.num_features)
    bias = layer.bias
    assert isinstance(bias, Tensor)
    return int(bias.shape[0])


def channel_norms(layer: nn.Module) -> Tensor:
    """Euclidean norm of each output channel's weights, shape ``(channels,)``, float64; the bias does not count."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weights = weight.detach().double()
    if isinstance(layer, _TRANSPOSED):
        weights = weights.view(int(layer.groups), -1, *weights.shape[1:]).transpose(1, 2)
        weights = weights.flatten(2).flatten(0, 1)
    norms: Tensor = torch.linalg.vector_norm(weights.reshape(len(weights), -1), dim=1)
    return norms


def channel_axis(layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> int | None:
    """Axis of the output that holds the channels, or None where a correction would not fold into the parameters.

    The layers of torch are known. Of another one, or one with a forward pass of its own (a LayerNorm over the second
    axis, say), each axis of the right size is put to the test: a random correction is folded in, and the output must
    follow.
    """
    if not isinstance(output, Tensor):
        return None
    known = next((base for base in type(layer).__mro__ if base in _AXES), None)
    if known is not None and type(layer).forward is known.forward:
        return -len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm) else _AXES[known]
    size = channels(layer)
    if not has_affine(layer):
        return 1 if output.dim() > 1 and output.shape[1] == size else None
    axes = (axis for axis in range(output.dim()) if output.shape[axis] == size)
    return next((axis for axis in axes if _folds(layer, args, kwargs, output, axis)), None)


def along(values: Tensor, axis: int, dim: int) -> Tensor:
    """View per-channel values so that they broadcast along one axis of a tensor with `dim` axes."""
    shape = [1] * dim
    shape[axis] = -1
    return values.view(shape)


def fold(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Fold ``y -> scale * y + shift`` into the layer's weight and bias, in place.

    Parameters
    ----------
    layer
        A layer for which `has_affine` holds.
    scale, shift
        Tensors of shape ``(channels,)``, float64, on the layer's device.
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    if isinstance(layer, _TRANSPOSED):  # weight of shape (in, out / groups, ...), groups along the first axis
        groups = int(layer.groups)
        factor = scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
        scaled = (weight.double().reshape(groups, -1, *weight.shape[1:]) * factor).view_as(weight)
    else:
        scaled = weight.double() * along(scale, 0, weight.dim())
    with torch.no_grad():
        weight.copy_(scaled)
        bias.copy_(bias.double() * along(scale, 0, bias.dim()) + along(shift, 0, bias.dim()))


def _folds(layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor, axis: int) -> bool:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    kept = weight.detach().clone(), bias.detach().clone()
    generator = torch.Generator().manual_seed(0)
    size = output.shape[axis]
    scale = (1 + torch.rand(size, generator=generator, dtype=torch.float64)).to(output.device)
    shift = torch.randn(size, generator=generator, dtype=torch.float64).to(output.device)
    expected = output.double() * along(scale, axis, output.dim()) + along(shift, axis, output.dim())
    try:
        fold(layer, scale, shift)
        changed = layer.forward(*args, **kwargs)
    finally:
        with torch.no_grad():
            weight.copy_(kept[0])
            bias.copy_(kept[1])
    finite = expected[torch.isfinite(expected)]  # the state that is loaded may be a broken client's
    tolerance = 100 * torch.finfo(output.dtype).eps * float(finite.abs().max()) if len(finite) else 0.0
    return isinstance(changed, Tensor) and torch.allclose(
        changed.double(), expected, rtol=0, atol=tolerance, equal_nan=True
    )
