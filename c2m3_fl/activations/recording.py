"""One forward pass of a network over the calibration set, and all that is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from c2m3_fl.activations.calibration import Batch
from c2m3_fl.activations.moments import Moments
from c2m3_fl.activations.network import Hook, Network
from c2m3_fl.activations.sites import Site, channel_norms
from c2m3_fl.symmetry import Permutations, PermutationSpec

Reader = Callable[[Any], Tensor]
"""Makes predictions of a network's output."""


@dataclass(frozen=True)
class Recording:
    """What is kept of a network's forward pass over the calibration set.

    Attributes
    ----------
    moments
        Per affine site the moments of its output, in the order of the forward pass.
    norms
        Per affine site the norm of each channel's weights, shape ``(channels,)``, float64.
    predictions
        Per batch what was read from the output; empty if nothing was to be read.
    """

    moments: Mapping[str, Moments]
    norms: Mapping[str, Tensor]
    predictions: Sequence[Tensor] = field(default=(), repr=False)

    @property
    def fault(self) -> str | None:
        """What is not finite, in words; None if all is."""
        for site, found in self.moments.items():
            if bad := int((~torch.isfinite(found.mean + found.variance)).sum()):
                return f"activations of the layer {site!r} are not finite in {bad} channel(s)"
        if not all(bool(torch.isfinite(each).all()) for each in self.predictions):
            return "predictions on the calibration set are not finite"
        return None

    def mapped(self, spec: PermutationSpec, permutations: Permutations) -> Recording:
        """The recording of the same network with its neurons reordered: its predictions are the same."""
        moments, norms = dict(self.moments), dict(self.norms)
        for site, found in self.moments.items():
            index = spec.tensors[f"{site}.bias".removeprefix(".")][0].index(permutations)
            if index is not None:
                place = index.to(found.mean.device)
                moments[site] = Moments(found.count, found.mean[place], found.variance[place])
                norms[site] = self.norms[site][place]
        return replace(self, moments=moments, norms=norms)


def record(
    network: Network,
    state_dict: Mapping[str, Tensor],
    sites: Sequence[Site],
    batches: Sequence[Batch],
    what: str,
    *,
    read: Reader | None = None,
) -> Recording:
    """Pass the calibration set through a network once.

    Parameters
    ----------
    network
        Where the state dict is loaded.
    state_dict
        The network's tensors.
    sites
        Where to measure.
    batches
        The calibration set.
    what
        Names the network in errors.
    read
        Makes predictions of the outputs; None to keep none.

    Raises
    ------
    RepairError
        If the state dict does not fit, or a forward pass fails. Values that are not finite are no error here (see
        `Recording.fault`).
    """
    affine = [site for site in sites if site.affine]
    parts: dict[str, list[Moments]] = {site.name: [] for site in affine}

    def watch(site: Site) -> Hook:
        def hook(layer: object, args: object, kwargs: object, output: Tensor) -> None:
            parts[site.name].append(Moments.of(output, site.axis))

        return hook

    predictions: list[Tensor] = []
    network.load(state_dict, what)
    with network.watched({site.name: watch(site) for site in affine}):
        for index, batch in enumerate(batches):
            output = network.forward(index, batch, what)
            if read is not None:
                predictions.append(read(output))
    moments = {name: Moments.pool(found) for name, found in parts.items() if found}
    norms = {site.name: channel_norms(network.layer(site)) for site in affine if site.name in moments}
    return Recording(moments, norms, predictions)
