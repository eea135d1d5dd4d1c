r"""REPAIR: give a merged network the activation statistics of the networks it was merged from.

Averaging neurons that agree only in part shrinks the spread of their activations, layer after layer. REPAIR (Jordan,
Sedghi, Saukh, Entezari and Neyshabur, "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023)
restores, per channel, the endpoints' averaged mean and standard deviation:

.. math:: \mathrm{E}[X] = \sum_p w_p \mathrm{E}[X_p], \qquad \mathrm{std}(X) = \sum_p w_p \,\mathrm{std}(X_p)

(C2M3, section A.4, Eqs. 7-8, for n clients). Nothing is inserted: every correction folds into parameters that the
layer has (`c2m3_fl.activations.sites`), so the state dict keeps its keys, shapes and dtypes.

The sites are corrected in the order of the forward pass, each before its output reaches the next layer. So one sweep is
exact: afterwards every corrected site has its goal on the calibration set, to 1e-4 of its standard deviation in
float32.

BatchNorm's running statistics lag behind in clients that trained for a few steps, and then say nothing about their
networks. So the clients, too, are measured with the statistics of the calibration set in their place.

If the network is trained on, over many rounds of federated learning, an exact repair is too much of a good thing. It
restores spread by larger weights; clients train on from there, their spread grows, the next repair aims at that. MNIST,
ten clients, Dirichlet(0.3), learning rate 0.05 with momentum 0.9: the global network's norm went from 16 to 47 in four
rounds (that of plain averages to 18), and a client diverged. The bounded method therefore scales no channel's weights
beyond the largest norm that a client has there. The mean is corrected in full.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from c2m3_fl.activations.batch_norm import batch_norm_output, set_running_statistics
from c2m3_fl.activations.calibration import Batch, Calibration, CalibrationSet
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.lockstep import Call, Lockstep
from c2m3_fl.activations.moments import Moments, Statistics, check_finite, normalise
from c2m3_fl.activations.network import Architecture, Network, private_network
from c2m3_fl.activations.recording import Recording, record
from c2m3_fl.activations.sites import Site, has_running_statistics
from c2m3_fl.activations.unfolding import input_rows
from c2m3_fl.device import resolve_device
from c2m3_fl.repair.correction import correct, is_constant
from c2m3_fl.repair.least_squares import refit, rescale
from c2m3_fl.repair.methods import BOUNDED, Method, treatment
from c2m3_fl.repair.plan import Plan, plan, recorded_rows

__all__ = ["BOUNDED", "Method", "repair", "repair_recorded"]

_log = logging.getLogger(__name__)


def repair(
    module: Architecture,
    merged: Mapping[str, Tensor],
    endpoints: Sequence[Mapping[str, Tensor]],
    calibration: Calibration | CalibrationSet,
    *,
    weights: Sequence[float] | Tensor | None = None,
    method: Method = "repair",
    output_layer: bool = True,
    device: str | torch.device = "auto",
) -> dict[str, Tensor]:
    """Repair the activations of a merged network.

    Parameters
    ----------
    module
        The architecture, or a function without arguments that builds it. It is left as it is.
    merged
        The merged network's state dict.
    endpoints
        The clients' state dicts, mapped to the universe: neuron by neuron what was averaged.
    calibration
        Inputs: one tensor, or an iterable of batches (tensors, or tuples that begin with one). The result does not
        depend on the division into batches, the memory does: a tensor is one batch, the fastest; split a large one.
    weights
        Per client a weight, such as its number of examples; equal ones for None. Only their ratios matter, and a client
        of weight zero is ignored.
    method
        `"repair"` aims at the mean of the clients' standard deviations, as the paper; `"repair-bounded"`, for networks
        that are trained on, does so only as far as no channel's weights become larger than in the client where they are
        largest; `"repair-pooled"` aims at the standard deviation of their activations together (see
        `c2m3_fl.repair.goal`), better where labels are skewed;
        `"least-squares"` fits each linear and convolutional layer to the clients' weighted mean output (see
        `c2m3_fl.repair.least_squares`) and treats all other layers as `"repair"`; `"least-squares-bounded"`, for networks
        that are trained on, stays closer to the average, and treats all other layers as `"repair-bounded"`;
        `"recalibrate"` recomputes BatchNorm's running statistics and nothing else (also known as resetting them).
    output_layer
        Whether the last layer, such as a classifier's logits, is corrected too. REPAIR's authors leave it out; where
        labels are skewed it is most of the gain.
    device
        `"auto"`, or any device that torch knows.

    Returns
    -------
    dict
        The repaired state dict: keys, their order, shapes, dtypes and devices as in `merged`.

    Raises
    ------
    RepairError
        If an input is unusable; the message says which and where.

    Notes
    -----
    A layer that one forward pass calls several times is corrected once, by statistics pooled over the calls: exact
    unless a later call's input depends on an earlier call's output.
    """
    how = treatment(method)
    shares = normalise(weights, len(endpoints))
    with private_network(module, resolve_device(device)) as network:
        batches = CalibrationSet.read(calibration, network.module).batches
        for index, endpoint in enumerate(endpoints):
            network.check(endpoint, f"endpoint {index}")
        network.load(merged, "the merged network")
        sites = network.sites(batches[0])
        recordings = []
        if how.spread is not None:
            counted = [index for index, share in enumerate(shares) if share > 0]
            rows = recorded_rows(network, sites, how)
            recordings = [
                record(network, endpoints[index], sites, batches, f"endpoint {index}", rows=rows, recalibrate=True)
                for index in counted
            ]
            for index, recording in zip(counted, recordings, strict=True):
                if fault := recording.fault:
                    raise RepairError(f"endpoint {index}: {fault}")
        return repair_recorded(
            network,
            merged,
            recordings,
            sites,
            batches,
            weights=[share for share in shares if share > 0],
            method=method,
            output_layer=output_layer,
        )


def repair_recorded(
    network: Network,
    merged: Mapping[str, Tensor],
    recordings: Sequence[Recording],
    sites: Sequence[Site],
    batches: Sequence[Batch],
    *,
    weights: Sequence[float],
    method: Method,
    output_layer: bool = True,
) -> dict[str, Tensor]:
    """The same from recordings of the endpoints, mapped to the universe as the endpoints are.

    Parameters
    ----------
    network
        Where the merged network is loaded and corrected.
    merged
        Its state dict.
    recordings
        One for each endpoint; not needed to recalibrate.
    sites, batches
        Those that were recorded.
    weights
        One positive weight per recording.
    method, output_layer
        See `repair`.

    Raises
    ------
    RepairError
        If the merged network's activations are not finite.
    """
    network.load(merged, "the merged network")
    todo = plan(
        network,
        recordings,
        sites,
        sum(batch.size for batch in batches),
        weights=weights,
        how=treatment(method),
        output_layer=output_layer,
    )
    if not todo.sites:
        _log.warning("the module has no layer that %s could correct; the merged network stays as it is", method)
    _Sweep(network, batches, todo).run()
    return network.export(merged, [network.layer(site) for site in todo.sites])


class _Sweep:
    """The corrections in order."""

    def __init__(self, network: Network, batches: Sequence[Batch], plan: Plan) -> None:
        self.network = network
        self.batches = batches
        self.plan = plan
        self.firsts = [0, *accumulate(batch.size for batch in batches)]
        self.moments: list[Moments] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def run(self) -> None:
        """Correct every site."""
        Lockstep(
            self.network, self.plan.sites, self.batches, "the merged network", visit=self._visit, advance=self._advance
        ).run()

    def _visit(self, call: Call) -> None:
        site = call.site
        if site.name in self.plan.fits:
            sample = self.plan.fits[site.name].sample
            first, size = self.firsts[call.batch], self.batches[call.batch].size
            rows = sample.indices(first, size, call.output.numel() // call.output.shape[site.axis])
            self.inputs.append(input_rows(call.layer, call.input, call.output, rows))
            self.outputs.append(sample.select(call.output, site.axis, first, size))
        else:
            part = Moments.of(call.input if has_running_statistics(call.layer) else call.output, site.axis)
            check_finite(part, site.name, "the merged network")
            self.moments.append(part)

    def _advance(self, site: Site) -> None:
        layer = self.network.layer(site)
        if self.inputs:
            self._fit(site, layer)
        elif self.moments:
            self._correct(site, layer)

    def _fit(self, site: Site, layer: nn.Module) -> None:
        inputs, outputs, wanted = torch.cat(self.inputs), torch.cat(self.outputs), self.plan.fits[site.name]
        self.inputs, self.outputs = [], []
        if not bool(torch.isfinite(outputs).all()):
            raise RepairError(f"the merged network: activations of the layer {site.name!r} are not finite")
        if outputs.shape != wanted.target.shape:
            _log.warning("the layer %r stays as it is: the merged network has other rows there", site.name)
            return
        refit(layer, inputs, outputs, wanted.target, self.plan.ridge)
        if wanted.norms is not None:
            rescale(layer, wanted.norms)

    def _correct(self, site: Site, layer: nn.Module) -> None:
        moments, self.moments = Moments.pool(self.moments), []
        constant = is_constant(moments)
        if has_running_statistics(layer):
            set_running_statistics(layer, moments)
            moments = batch_norm_output(layer, moments)
        if site.name in self.plan.goals:
            current = Statistics(moments.mean, moments.std)
            correct(layer, current, self.plan.goals[site.name], constant, self.plan.bounds.get(site.name))
