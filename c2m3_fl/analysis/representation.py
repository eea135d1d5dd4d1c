r"""How similar the representations of two networks are (C2M3, appendix C.1.1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def linear_cka(x: Tensor, y: Tensor) -> float:
    r"""Linear centred kernel alignment of two representations of the same N inputs (C2M3, Eq. 10).

    .. math:: \frac{\mathrm{HSIC}(X, Y)}{\sqrt{\mathrm{HSIC}(X, X)\,\mathrm{HSIC}(Y, Y)}}, \qquad
              \mathrm{HSIC}(X, Y) \propto \lVert \tilde{Y}^\top \tilde{X} \rVert_F^2

    with columns centred. The feature form costs features squared, the kernel form inputs squared; the smaller is used.

    Parameters
    ----------
    x, y
        Activations, shapes ``(N, features of x)`` and ``(N, features of y)``, N >= 2.

    Returns
    -------
    float
        In [0, 1]; 1 for representations equal up to rotation, isotropic scale and shift. Invariant to permutations.

    Raises
    ------
    ValueError
        If the shapes are not such, or a representation is constant.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(f"CKA compares (N, features) with N >= 2, not shapes {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = _centred(x), _centred(y)
    norm = _hsic(x, x) * _hsic(y, y)
    if norm == 0.0:
        raise ValueError("a representation that is the same for all inputs has no CKA")
    return _hsic(x, y) / math.sqrt(norm)


def gram_matrices(
    module: nn.Module, state_dict: Mapping[str, Tensor], inputs: Tensor, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Inner products of the inputs' representations, layer by layer, for `gram_cka`.

    Unlike representations, which for images have hundreds of thousands of features, these take inputs squared numbers.

    Parameters
    ----------
    module
        The network; it is copied, and evaluated in evaluation mode.
    state_dict
        Its weights.
    inputs
        One batch, ``(N, ...)``.
    device
        Where to evaluate.

    Returns
    -------
    dict of str to Tensor
        For each layer with parameters of its own whose output is a tensor of N entries, in the order of the forward pass,
        the matrix ``(N, N)`` of the first output, centred, in float64 on the CPU.
    """
    network = copy.deepcopy(module).to(device).eval()
    network.load_state_dict(dict(state_dict))
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            if name not in found and isinstance(output, Tensor) and output.dim() > 1 and len(output) == len(inputs):
                centred = _centred(output.flatten(1))
                found[name] = (centred @ centred.T).cpu()

        return hook

    for name, layer in network.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_hook(watch(name))
    with torch.no_grad():
        network(inputs.to(device))
    return found


def gram_cka(k: Tensor, l: Tensor) -> float:  # noqa: E741  # K and L, as in the literature
    """`linear_cka` from two centred matrices of `gram_matrices`.

    Raises
    ------
    ValueError
        If a representation is the same for all inputs.
    """
    norm = float(k.square().sum()) * float(l.square().sum())
    if norm == 0.0:
        raise ValueError("a representation that is the same for all inputs has no CKA")
    return float((k * l).sum()) / math.sqrt(norm)


def representation_distance(x: Tensor, y: Tensor) -> float:
    """Mean over inputs of the Euclidean distance of two representations, shapes ``(N, features)``.

    Not invariant to permutations: it falls when networks are mapped to the universe (C2M3, Figures 14c and 14d).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"the distance is of equal shapes (N, features), not {tuple(x.shape)} and {tuple(y.shape)}")
    return float((x.double() - y.double()).norm(dim=1).mean())


def _centred(x: Tensor) -> Tensor:
    x = x.detach().double()
    return x - x.mean(dim=0, keepdim=True)


def _hsic(x: Tensor, y: Tensor) -> float:
    if x.shape[1] * y.shape[1] <= len(x) ** 2:
        return float((y.T @ x).square().sum())
    return float(((x @ x.T) * (y @ y.T)).sum())
