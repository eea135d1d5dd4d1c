"""Moments of a network's activations, per site and channel.

They are all that repair needs to know of the data. Moments of several batches or clients pool exactly (Chan, Golub and
LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979), so clients can send theirs
where the server has no data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from c2m3_fl.activations.calibration import Batch, Calibration, CalibrationSet
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.network import Architecture, Hook, Network, private_network
from c2m3_fl.activations.sites import Site
from c2m3_fl.device import resolve_device

Spread = Literal["mean", "pooled"]

_FIELDS = ("count", "mean", "variance")


@dataclass(frozen=True)
class Moments:
    """Moments of one site's output, per channel.

    Attributes
    ----------
    count
        Number of values in each channel: examples times positions.
    mean
        Shape ``(channels,)``, float64.
    variance
        Second central moment (divided by `count`), shape ``(channels,)``, float64.
    """

    count: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, values: Tensor, axis: int) -> Moments:
        """Moments of a tensor along all axes but one, two passes in float64.

        The tensor is read in slices that fit a processor's cache (or a modest part of a GPU's memory), so no float64
        copy of it is made.
        """
        rows = values.unsqueeze(0) if values.dim() == 1 else values.movedim(axis, 1)
        per_slice = 1 << (24 if values.is_cuda else 18)
        step = max(1, per_slice // max(1, rows[0].numel()))
        parts = []
        for part in torch.split(rows, step):
            exact = part.double()
            dims = [d for d in range(exact.dim()) if d != 1]
            mean = exact.mean(dims, keepdim=True)
            variance = (exact - mean).square_().mean(dims)
            parts.append(cls(exact.numel() // exact.shape[1], mean.flatten(), variance))
        return cls.pool(parts)

    @classmethod
    def pool(cls, parts: Sequence[Moments]) -> Moments:
        """Moments of the union of disjoint sets of values."""
        count = sum(part.count for part in parts)
        shares = torch.tensor([part.count / count for part in parts], dtype=torch.float64)
        shares = shares.to(parts[0].mean.device).unsqueeze(1)
        means = torch.stack([part.mean for part in parts])
        mean = (shares * means).sum(0)
        variances = torch.stack([part.variance for part in parts])
        return cls(count, mean, (shares * (variances + (means - mean).square())).sum(0))

    @property
    def std(self) -> Tensor:
        """Standard deviation, shape ``(channels,)``."""
        return self.variance.sqrt()


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of one site's output, each of shape ``(channels,)``, float64."""

    mean: Tensor
    std: Tensor


def measure(
    module: Architecture,
    state_dict: Mapping[str, Tensor],
    calibration: Calibration,
    *,
    device: str | torch.device = "auto",
) -> dict[str, Moments]:
    """Measure a network's activations at every site.

    Parameters
    ----------
    module
        The architecture, or a function without arguments that builds it. It is left as it is.
    state_dict
        The parameters and buffers to measure with.
    calibration
        Inputs: one tensor, or an iterable of batches (tensors, or tuples that begin with one).
    device
        `"auto"`, or any device that torch knows.

    Returns
    -------
    dict
        Per site's name the moments, on the CPU, in the order in which the forward pass calls the sites.

    Raises
    ------
    RepairError
        If the state dict does not fit the module, the calibration set cannot be read, or activations are not finite.
    """
    with private_network(module, resolve_device(device)) as network:
        batches = CalibrationSet.read(calibration, network.module).batches
        network.load(state_dict, "the state dict")
        sites = network.sites(batches[0])
        moments = measure_sites(network, sites, batches, "the network")
    return {name: Moments(m.count, m.mean.cpu(), m.variance.cpu()) for name, m in moments.items()}


def measure_sites(network: Network, sites: Sequence[Site], batches: Sequence[Batch], what: str) -> dict[str, Moments]:
    """Moments at the affine sites of the network as it is loaded; `what` names it in errors."""
    parts: dict[str, list[Moments]] = {site.name: [] for site in sites if site.affine}

    def watch(site: Site) -> Hook:
        def hook(layer: object, args: object, kwargs: object, output: Tensor) -> None:
            part = Moments.of(output, site.axis)
            check_finite(part, site.name, what)
            parts[site.name].append(part)

        return hook

    with network.watched({site.name: watch(site) for site in sites if site.affine}):
        for index, batch in enumerate(batches):
            network.forward(index, batch, what)
    return {name: Moments.pool(found) for name, found in parts.items() if found}


def check_finite(moments: Moments, site: str, what: str) -> None:
    """Raise where an activation is NaN or infinite."""
    bad = int((~torch.isfinite(moments.mean + moments.variance)).sum())
    if bad:
        raise RepairError(f"{what}: activations of the layer {site!r} are not finite in {bad} channel(s)")


def normalise(weights: Sequence[float] | Tensor | None, clients: int) -> tuple[float, ...]:
    """Weights of the clients, summing to one; equal ones for None.

    Raises
    ------
    RepairError
        If there is no client, or the weights are of another number, negative, not finite, or all zero.
    """
    if clients == 0:
        raise RepairError("there is no client to take the goal from")
    if weights is None:
        return (1 / clients,) * clients
    values = [float(weight) for weight in weights]
    if len(values) != clients:
        raise RepairError(f"{len(values)} weight(s) for {clients} client(s)")
    for client, value in enumerate(values):
        if not math.isfinite(value) or value < 0:
            raise RepairError(f"the weight of client {client} is {value}; weights are finite and not negative")
    largest = max(values)
    if largest == 0:
        raise RepairError("all weights are zero")
    total = math.fsum(value / largest for value in values)  # a sum of huge weights would overflow
    return tuple(value / largest / total for value in values)


def goal(
    moments: Sequence[Mapping[str, Moments]],
    weights: Sequence[float] | Tensor | None = None,
    *,
    spread: Spread = "mean",
) -> dict[str, Statistics]:
    r"""Statistics to aim at, from those of the clients.

    The mean is the clients' means, averaged. The standard deviation is

    - for ``spread="mean"`` the clients' standard deviations, averaged (C2M3, Eqs. 7-8, for n clients):
      :math:`\mu = \sum_p w_p \mu_p` and :math:`\sigma = \sum_p w_p \sigma_p`;
    - for ``spread="pooled"`` that of all the clients' activations together, which includes how far their means lie
      apart: :math:`\sigma^2 = \sum_p w_p (\sigma_p^2 + (\mu_p - \mu)^2)`. It is never smaller.

    Parameters
    ----------
    moments
        Per client what `measure` returned.
    weights
        Per client a weight, such as its number of examples; equal ones for None. Only their ratios matter, and a client
        of weight zero is ignored.
    spread
        `"mean"` or `"pooled"`.

    Raises
    ------
    RepairError
        If the clients' sites or channels differ, or the weights are unusable.
    """
    if spread not in get_args(Spread):
        raise RepairError(f"unknown spread {spread!r}; use one of {', '.join(map(repr, get_args(Spread)))}")
    shares = normalise(weights, len(moments))
    counted = [index for index, share in enumerate(shares) if share > 0]
    first = moments[counted[0]]
    for index in counted:
        if moments[index].keys() != first.keys():
            raise RepairError(f"client {index} measured other sites: {sorted(moments[index].keys() ^ first.keys())}")
        for site, found in moments[index].items():
            if found.mean.shape != first[site].mean.shape:
                raise RepairError(f"client {index} has {found.mean.shape[0]} channels at the layer {site!r}")
    counted_shares = torch.tensor([shares[index] for index in counted], dtype=torch.float64).unsqueeze(1)
    return {site: _combine([moments[index][site] for index in counted], counted_shares, spread) for site in first}


def _combine(clients: Sequence[Moments], shares: Tensor, spread: Spread) -> Statistics:
    shares = shares.to(clients[0].mean.device)
    means = torch.stack([client.mean for client in clients])
    mean = (shares * means).sum(0)
    if spread == "mean":
        return Statistics(mean, (shares * torch.stack([client.std for client in clients])).sum(0))
    variances = torch.stack([client.variance for client in clients])
    return Statistics(mean, (shares * (variances + (means - mean).square())).sum(0).sqrt())


def to_arrays(moments: Mapping[str, Moments]) -> dict[str, npt.NDArray[np.float64]]:
    """Moments as float64 arrays ``<site>.count``, ``.mean`` and ``.variance``, ready for a Flower ArrayRecord."""
    return {
        f"{site}.{field}": np.asarray(getattr(found, field), dtype=np.float64)
        for site, found in moments.items()
        for field in _FIELDS
    }


def from_arrays(arrays: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, Moments]:
    """Read what `to_arrays` wrote, possibly elsewhere and by somebody else.

    Raises
    ------
    RepairError
        If an array is missing or unknown, has another shape, or holds impossible values.
    """
    sites = dict.fromkeys(key.rpartition(".")[0] for key in arrays)
    if unknown := arrays.keys() - {f"{site}.{field}" for site in sites for field in _FIELDS}:
        raise RepairError(f"not arrays of moments: {', '.join(sorted(unknown))}")
    return {site: _read(site, arrays) for site in sites}


def _read(site: str, arrays: Mapping[str, npt.NDArray[np.float64]]) -> Moments:
    if missing := [field for field in _FIELDS if f"{site}.{field}" not in arrays]:
        raise RepairError(f"the moments of the layer {site!r} lack {', '.join(missing)}")
    count, mean, variance = (np.asarray(arrays[f"{site}.{field}"], dtype=np.float64) for field in _FIELDS)
    if count.size != 1 or mean.ndim != 1 or mean.shape != variance.shape:
        raise RepairError(
            f"the moments of the layer {site!r} have shapes {count.shape}, {mean.shape}, {variance.shape}; "
            "expected one count and a mean and a variance per channel"
        )
    number = float(count.reshape(()))
    if not (number >= 1 and number.is_integer()) or not np.isfinite(mean + variance).all() or (variance < 0).any():
        raise RepairError(f"the moments of the layer {site!r} hold impossible values")
    return Moments(int(number), torch.from_numpy(mean.copy()), torch.from_numpy(variance.copy()))
