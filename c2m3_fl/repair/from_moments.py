"""REPAIR without data: from statistics that were measured elsewhere, all sites at once.

The clients measure the moments of their own networks (the goal) and, in a second exchange, those of the merged one. The
server needs no input, and learns per channel a mean, a variance and a count.

What is exact and what is not
-----------------------------
All corrections come from one measurement, while each changes the inputs of the layers behind it. So a site is exact if
no other named site feeds it: a single one, or the first. Behind layers that normalise every example by themselves
(layer, group, instance norms) the error is small, as they undo a change of scale; elsewhere it grows with depth, and
many sites at once can be worse than none (BatchNorm above all).

So name one site per exchange. In the order of the forward pass, as many exchanges as there are sites give what `repair`
gives. The last site alone, in one exchange, is most of the gain: five networks of three convolutions with BatchNorm,
MNIST with Dirichlet(0.3) labels, each from its own initialisation and aligned (two seeds), test accuracy in per cent,
statistics from 512 examples a client:

====================================  =========  ===============  ===================
statistics                            no repair  last site alone  every site, in turn
====================================  =========  ===============  ===================
pooled spread, examples held out      76.5       87.3             87.6
pooled spread, the training examples  76.5       83.1             84.6
mean spread, examples held out        76.5       79.9             80.8
====================================  =========  ===============  ===================

Clients do best to measure on examples that they did not train on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from c2m3_fl.activations.batch_norm import batch_norm_input, batch_norm_output, set_running_statistics
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.moments import Moments, Statistics
from c2m3_fl.activations.network import Architecture, Network, private_network
from c2m3_fl.activations.sites import channels, has_affine, has_running_statistics
from c2m3_fl.repair.correction import correct

_MANY = 1 << 53  # values of which the statistics tell no number: the unbiased variance is the biased one


def repair_from_moments(
    module: Architecture,
    merged: Mapping[str, Tensor],
    goal: Mapping[str, Statistics],
    current: Mapping[str, Statistics],
    bounds: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Move a merged network's activation statistics towards a goal, without data.

    Parameters
    ----------
    module
        The architecture, or a function without arguments that builds it. It is left as it is.
    merged
        The merged network's state dict, or the part of it that is federated.
    goal
        Per site the statistics to aim at: `c2m3_fl.repair.goal` of the clients' own moments, or a part of it. Sites
        that are not named stay as they are; `measure` names them in the order of the forward pass.
    current
        The merged network's statistics at those sites or more, put together from the clients' measurements *by the same
        function with the same weights and spread*, so that the clients' different data cancel out.
    bounds
        Per site the norms, shape ``(channels,)``, beyond which no channel's weights are scaled up; None for no bound.

    Returns
    -------
    dict
        The repaired state dict: keys, their order, shapes, dtypes and devices as in `merged`.

    Raises
    ------
    RepairError
        If the state dict does not fit the module, or the statistics do not fit its layers.
    """
    with private_network(module, torch.device("cpu"), merged.keys()) as network:
        network.load(merged, "the merged network")
        for site, wanted in goal.items():
            if site not in current:
                raise RepairError(f"the merged network was not measured at the layer {site!r}")
            _check(network, site, wanted, "goal")
            _check(network, site, current[site], "current statistics")
        for site, wanted in goal.items():
            _correct(network, site, wanted, current[site], None if bounds is None else bounds.get(site))
        return network.export(merged, [network.module.get_submodule(site) for site in goal])


def _correct(network: Network, site: str, goal: Statistics, current: Statistics, bound: Tensor | None) -> None:
    layer = network.module.get_submodule(site)
    if has_running_statistics(layer):
        inputs = batch_norm_input(layer, current)
        if inputs is not None:  # then the affine parameters start from up-to-date running statistics, as in training
            found = Moments(_MANY, inputs.mean, inputs.std.square())
            set_running_statistics(layer, found)
            output = batch_norm_output(layer, found)
            current = Statistics(output.mean, output.std)
    correct(layer, current, goal, bound=bound)


def _check(network: Network, site: str, found: Statistics, what: str) -> None:
    layer = dict(network.module.named_modules()).get(site)
    if layer is None or not has_affine(layer):
        raise RepairError(f"the {what} names {site!r}, which is no layer with a weight and a bias of its own")
    if reason := network.excluded().get(site):
        raise RepairError(f"the layer {site!r} cannot be corrected: {reason}")
    shape = (channels(layer),)
    if found.mean.shape != shape or found.std.shape != shape:
        raise RepairError(
            f"the {what} of the layer {site!r} has shapes {tuple(found.mean.shape)} and {tuple(found.std.shape)}; "
            f"the layer has {shape[0]} channels"
        )
    if not bool(torch.isfinite(found.mean + found.std).all()) or bool((found.std < 0).any()):
        raise RepairError(f"the {what} of the layer {site!r} holds impossible values")
