"""What a repair is to do at each site, from the clients' recordings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from c2m3_fl.activations.moments import Statistics, goal
from c2m3_fl.activations.network import Network
from c2m3_fl.activations.recording import Recording
from c2m3_fl.activations.rows import RowSample
from c2m3_fl.activations.sites import Site, has_running_statistics
from c2m3_fl.repair.bounds import largest
from c2m3_fl.repair.least_squares import targets, wanted_rows
from c2m3_fl.repair.methods import Treatment

_log = logging.getLogger(__name__)

_RIDGE_BEFORE_NORM = 1.0


@dataclass(frozen=True)
class Fit:
    """How a matrix is fitted.

    Attributes
    ----------
    target
        What it should compute at the sampled rows, shape ``(rows, channels)``.
    sample
        The rows.
    norms
        To which norm each channel's weights are scaled afterwards, shape ``(channels,)``; None to leave them.
    """

    target: Tensor
    sample: RowSample
    norms: Tensor | None


@dataclass(frozen=True)
class Plan:
    """What to do at which site.

    Attributes
    ----------
    sites
        Those with something to do, in the order of the forward pass.
    goals
        Statistics to move a site's output to.
    bounds
        Norms beyond which no channel's weights are scaled.
    fits
        Matrices that are fitted.
    ridge
        Of the fits.
    """

    sites: Sequence[Site]
    goals: Mapping[str, Statistics] = field(default_factory=dict)
    bounds: Mapping[str, Tensor] = field(default_factory=dict)
    fits: Mapping[str, Fit] = field(default_factory=dict)
    ridge: float = 0.0


def recorded_rows(network: Network, sites: Sequence[Site], how: Treatment) -> dict[str, int]:
    """Per site of which a repair needs outputs how many rows are to be recorded."""
    return {} if how.ridge is None else wanted_rows(network, sites)


def plan(
    network: Network,
    recordings: Sequence[Recording],
    sites: Sequence[Site],
    examples: int,
    *,
    weights: Sequence[float],
    how: Treatment,
    output_layer: bool,
) -> Plan:
    """Make a plan of the clients' recordings; `examples` is the size of the calibration set."""
    normalising = {site.name for site in sites if has_running_statistics(network.layer(site))}
    if how.spread is None:
        return Plan([site for site in sites if site.name in normalising])
    wanted = [site for site in sites if output_layer or not site.is_output]
    fits = {} if how.ridge is None else _fits(network, recordings, wanted, examples, weights)
    goals = goal([recording.moments for recording in recordings], weights, spread=how.spread)
    goals = {site.name: goals[site.name] for site in wanted if site.name in goals and site.name not in fits}
    if how.ridge is not None and goals:
        _log.info("least squares cannot fit the layers %s; their statistics are repaired", ", ".join(goals))
    return Plan(
        [site for site in sites if site.name in goals.keys() | fits.keys() | normalising],
        goals,
        largest(recording.norms for recording in recordings) if how.bounded else {},
        fits,
        _ridge(how, sites),
    )


def _ridge(how: Treatment, sites: Sequence[Site]) -> float:
    """More for networks with BatchNorm that are trained on: a small one fell below REPAIR at a tenth of it."""
    if how.ridge is None:
        return 0.0
    return max(how.ridge, _RIDGE_BEFORE_NORM) if how.bounded and any(site.normalised for site in sites) else how.ridge


def _fits(
    network: Network, recordings: Sequence[Recording], sites: Sequence[Site], examples: int, weights: Sequence[float]
) -> dict[str, Fit]:
    found, rows = targets([recording.outputs for recording in recordings], weights), wanted_rows(network, sites)
    fits = {}
    for site in sites:
        if site.name in found and site.is_matrix:
            norms = _mean_norms(site, recordings, weights) if site.normalised else None
            fits[site.name] = Fit(found[site.name], RowSample.of(rows[site.name], examples), norms)
    return fits


def _mean_norms(site: Site, recordings: Sequence[Recording], weights: Sequence[float]) -> Tensor:
    """A BatchNorm hides the scale of its inputs' weights, but not from training: small ones take larger steps."""
    norms = [weight * recording.norms[site.name] for weight, recording in zip(weights, recordings, strict=True)]
    total = norms[0]
    for each in norms[1:]:
        total = total + each
    return total / sum(weights)
