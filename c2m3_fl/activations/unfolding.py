"""Linear layers and convolutions as matrices: the inputs that a row of the output is a linear function of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_matrix(layer: nn.Module) -> bool:
    """Whether the layer's output is its weight, a parameter of its own, times rows that `input_rows` can tell."""
    known = next((base for base in (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED) if isinstance(layer, base)), None)
    if known is None or type(layer).forward is not known.forward:
        return False
    own = dict(layer.named_parameters(recurse=False))
    if "weight" not in own or not own.keys() <= {"weight", "bias"} or not own["weight"].is_floating_point():
        return False
    # without a bias, no axis of a grouped transposed convolution's parameters holds the output's channels
    return "bias" in own or known not in _TRANSPOSED or _groups(layer) == 1


def weight_axis(layer: nn.Module) -> int:
    """Axis of the weight that holds the output's channels; those of one group of a transposed convolution."""
    return 1 if isinstance(layer, _TRANSPOSED) else 0


def weight_matrices(layer: nn.Module) -> Tensor:
    """The weight as matrices, shape ``(groups, outputs of a group, inputs of a row)``; a copy."""
    weight = _weight(layer).detach()
    groups = _groups(layer)
    if isinstance(layer, _TRANSPOSED):  # (in, out / groups, kernel): groups along the first axis
        return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(2).clone()
    return weight.reshape(groups, weight.shape[0] // groups, -1).clone()


def set_weight_matrices(layer: nn.Module, matrices: Tensor) -> None:
    """Set the weight to what `weight_matrices` would return, in place."""
    weight = _weight(layer)
    if isinstance(layer, _TRANSPOSED):
        groups, outputs = matrices.shape[:2]
        matrices = matrices.reshape(groups, outputs, weight.shape[0] // groups, *weight.shape[2:]).transpose(1, 2)
    with torch.no_grad():
        weight.copy_(matrices.reshape(weight.shape))


def fan_in(layer: nn.Module) -> int:
    """Inputs of a row."""
    weight = _weight(layer)
    if isinstance(layer, _TRANSPOSED):
        return weight.numel() // weight.shape[1] // _groups(layer)
    return weight.numel() // weight.shape[0]


def input_rows(layer: nn.Module, x: Tensor, output: Tensor, rows: Tensor) -> Tensor:
    """Inputs of some rows of the output, shape ``(rows, groups, inputs of a row)``.

    With these, ``output rows = weight_matrices @ inputs + bias``, group by group.

    Parameters
    ----------
    layer
        For which `is_matrix` holds.
    x, output
        Its input and output.
    rows
        Indices of rows of the output, examples first, then positions.
    """
    rows = rows.to(x.device)
    if isinstance(layer, nn.Linear):
        found: Tensor = x.reshape(-1, x.shape[-1])[rows].unsqueeze(1)
        return found
    dims = _weight(layer).dim() - 2
    if x.dim() == dims + 1:  # without a batch axis
        x = x.unsqueeze(0)
    shape = output.shape[-dims:]
    examples = torch.div(rows, math.prod(shape), rounding_mode="floor")
    positions = torch.stack(torch.unravel_index(rows % math.prod(shape), tuple(shape)), 1)
    taps = torch.cartesian_prod(*(torch.arange(size, device=x.device) for size in layer.kernel_size)).view(-1, dims)  # type: ignore[union-attr]
    gather = _transposed_places if isinstance(layer, _TRANSPOSED) else _places
    padded, places = gather(layer, x, positions, taps)
    found = padded.flatten(2)[examples[:, None], :, places]  # (rows, taps, channels)
    return found.transpose(1, 2).reshape(len(rows), _groups(layer), -1)


def _places(layer: Any, x: Tensor, positions: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """The padded input, and where in it each row's taps lie, shape ``(rows, taps)``."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    stride, dilation = taps.new_tensor(layer.stride), taps.new_tensor(layer.dilation)
    places = positions[:, None] * stride + taps[None] * dilation
    return padded, _flat(places, padded.shape[2:])


def _transposed_places(layer: Any, x: Tensor, positions: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """The same where taps may fall between inputs: those find a zero behind the last one."""
    stride, dilation = taps.new_tensor(layer.stride), taps.new_tensor(layer.dilation)
    reached = positions[:, None] + taps.new_tensor(layer.padding) - taps[None] * dilation
    places = torch.div(reached, stride, rounding_mode="floor")
    size = taps.new_tensor(x.shape[2:])
    hit = ((reached % stride == 0) & (places >= 0) & (places < size)).all(-1)
    flat = torch.where(hit, _flat(places, x.shape[2:]), math.prod(x.shape[2:]))
    return functional.pad(x.flatten(2), (0, 1)), flat


def _flat(places: Tensor, shape: tuple[int, ...]) -> Tensor:
    found = torch.zeros_like(places[..., 0])
    for axis, size in enumerate(shape):
        found = found * size + places[..., axis]
    return found


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _groups(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.Linear) else int(layer.groups)  # type: ignore[arg-type]
