"""How large weights may become in a repair whose network is trained on: at most as large as a client's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.network import Architecture, Network, private_network
from c2m3_fl.activations.sites import channel_norms, has_affine


def weight_norms(module: Architecture, state_dict: Mapping[str, Tensor], sites: Iterable[str]) -> dict[str, Tensor]:
    """Per site the norm of each output channel's weights, shape ``(channels,)``, float64.

    Parameters
    ----------
    module
        The architecture, or a function without arguments that builds it. It is left as it is.
    state_dict
        The network's tensors.
    sites
        Names of layers; those that are no site of this architecture are an error.

    Raises
    ------
    RepairError
        If the state dict does not fit the module, or a layer has no weight and bias of its own.
    """
    with private_network(module, torch.device("cpu"), state_dict.keys()) as network:
        network.load(state_dict, "the state dict")
        return loaded_norms(network, sites)


def loaded_norms(network: Network, sites: Iterable[str]) -> dict[str, Tensor]:
    """The same of a network as it is loaded."""
    layers = dict(network.module.named_modules())
    found = {}
    for site in sites:
        if site not in layers or not has_affine(layers[site]):
            raise RepairError(f"{site!r} is no layer with a weight and a bias of its own")
        found[site] = channel_norms(layers[site])
    return found


def largest(norms: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Per site and channel the largest norm that a client has there: the bound of ``"repair-bounded"``."""
    found: dict[str, Tensor] = {}
    for each in norms:
        for site, values in each.items():
            found[site] = torch.maximum(found[site], values) if site in found else values
    return found
