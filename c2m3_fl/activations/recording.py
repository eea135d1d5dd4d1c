"""One forward pass of a network over the calibration set, and all that is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from c2m3_fl.activations.batch_norm import set_running_statistics
from c2m3_fl.activations.calibration import Batch
from c2m3_fl.activations.lockstep import Call, Lockstep
from c2m3_fl.activations.moments import Moments
from c2m3_fl.activations.network import Hook, Network
from c2m3_fl.activations.rows import RowSample
from c2m3_fl.activations.sites import Site, channel_norms, has_running_statistics
from c2m3_fl.symmetry import Permutations, PermutationSpec

Reader = Callable[[Any], Tensor]
"""Makes predictions of a network's output."""


@dataclass(frozen=True)
class Outputs:
    """A sample of a layer's output.

    Attributes
    ----------
    values
        Shape ``(rows, channels)``: in every network the same rows, float32 (float64 where the network is).
    channels
        The tensor of the state dict, and its axis, whose entries are the channels.
    """

    values: Tensor
    channels: tuple[str, int]


@dataclass(frozen=True)
class Recording:
    """What is kept of a network's forward pass over the calibration set.

    Attributes
    ----------
    moments
        Per affine site the moments of its output, in the order of the forward pass.
    norms
        Per affine or sampled site the norm of each channel's weights, shape ``(channels,)``, float64.
    predictions
        Per batch what was read from the output; empty if nothing was to be read.
    outputs
        Per site that was to be sampled its output at some rows.
    """

    moments: Mapping[str, Moments]
    norms: Mapping[str, Tensor]
    predictions: Sequence[Tensor] = field(default=(), repr=False)
    outputs: Mapping[str, Outputs] = field(default_factory=dict, repr=False)

    @property
    def fault(self) -> str | None:
        """What is not finite, in words; None if all is."""
        for site, found in self.moments.items():
            if bad := int((~torch.isfinite(found.mean + found.variance)).sum()):
                return f"activations of the layer {site!r} are not finite in {bad} channel(s)"
        for site, sample in self.outputs.items():
            if bad := int((~torch.isfinite(sample.values)).any(0).sum()):
                return f"activations of the layer {site!r} are not finite in {bad} channel(s)"
        if not all(bool(torch.isfinite(each).all()) for each in self.predictions):
            return "predictions on the calibration set are not finite"
        return None

    def mapped(self, spec: PermutationSpec, permutations: Permutations) -> Recording:
        """The recording of the same network with its neurons reordered: its predictions are the same."""
        moments, norms, outputs = dict(self.moments), dict(self.norms), dict(self.outputs)
        for site in self.norms:
            tensor, axis = self.outputs[site].channels if site in outputs else (f"{site}.bias".removeprefix("."), 0)
            index = spec.tensors[tensor][axis].index(permutations)
            if index is None:
                continue
            place = index.to(norms[site].device)
            norms[site] = norms[site][place]
            if site in moments:
                found = moments[site]
                moments[site] = Moments(found.count, found.mean[place], found.variance[place])
            if site in outputs:
                outputs[site] = replace(outputs[site], values=outputs[site].values[:, place])
        return replace(self, moments=moments, norms=norms, outputs=outputs)


class _Keeper:
    """Gathers moments and rows, batch by batch: a batch whose pass starts anew forgets what was kept of it."""

    def __init__(self, sites: Sequence[Site], batches: Sequence[Batch], rows: Mapping[str, int]) -> None:
        examples = sum(batch.size for batch in batches)
        self.sites = [site for site in sites if site.affine or site.name in rows]
        self.batches = batches
        self.firsts = [0, *accumulate(batch.size for batch in batches)]
        self.samples = {name: RowSample.of(wanted, examples) for name, wanted in rows.items()}
        self.parts: list[dict[str, list[Moments]]] = [{} for _ in batches]
        self.rows: list[dict[str, list[Tensor]]] = [{} for _ in batches]

    def begin(self, batch: int) -> None:
        self.parts[batch], self.rows[batch] = {}, {}

    def hooks(self, passes: Lockstep) -> dict[str, Hook]:
        return {site.name: self._hook(site, passes) for site in self.sites}

    def _hook(self, site: Site, passes: Lockstep) -> Hook:
        def hook(layer: object, args: object, kwargs: object, output: Tensor) -> None:
            batch = passes.batch
            if site.affine:
                self.parts[batch].setdefault(site.name, []).append(Moments.of(output, site.axis))
            if site.name in self.samples:
                kept = self.samples[site.name].select(output, site.axis, self.firsts[batch], self.batches[batch].size)
                self.rows[batch].setdefault(site.name, []).append(kept)

        return hook

    def moments(self) -> dict[str, Moments]:
        found = {site.name: [m for parts in self.parts for m in parts.get(site.name, ())] for site in self.sites}
        return {name: Moments.pool(parts) for name, parts in found.items() if parts}

    def outputs(self) -> dict[str, Outputs]:
        kept = {}
        for site in self.sites:
            if found := [rows for each in self.rows for rows in each.get(site.name, ())]:
                kept[site.name] = Outputs(torch.cat(found), site.channels)
        return kept


def record(
    network: Network,
    state_dict: Mapping[str, Tensor],
    sites: Sequence[Site],
    batches: Sequence[Batch],
    what: str,
    *,
    read: Reader | None = None,
    rows: Mapping[str, int] | None = None,
    recalibrate: bool = False,
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
    rows
        Per site that is to be sampled about how many rows of its output are kept (see `RowSample`).
    recalibrate
        Whether BatchNorm's running statistics are set to those of its inputs on the whole calibration set before its
        output goes on, as if it normalised by them.

    Raises
    ------
    RepairError
        If the state dict does not fit, or a forward pass fails. Values that are not finite are no error here (see
        `Recording.fault`).
    """
    network.load(state_dict, what)
    keeper = _Keeper(sites, batches, rows or {})
    normalised = [site for site in sites if recalibrate and has_running_statistics(network.layer(site))]
    pooled: list[Moments] = []

    def visit(call: Call) -> None:
        pooled.append(Moments.of(call.input, call.site.axis))

    def advance(site: Site) -> None:
        if pooled:
            set_running_statistics(network.layer(site), Moments.pool(pooled))
            pooled.clear()

    passes = Lockstep(network, normalised, batches, what, visit=visit, advance=advance, begin=keeper.begin)
    predictions = passes.run(keeper.hooks(passes), read or (lambda output: None))
    moments = keeper.moments()
    outputs = keeper.outputs()
    norms = {name: channel_norms(network.module.get_submodule(name)) for name in {**moments, **outputs}}
    return Recording(moments, norms, () if read is None else predictions, outputs)
