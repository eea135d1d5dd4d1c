r"""Activation matching: neurons that respond alike to the same inputs go to the same place.

Git Re-Basin (Ainsworth, Hayase and Srinivasa, ICLR 2023, section 3.1) matches two networks by the inner products of their
activations, Li, Yosinski, Clune, Lipson and Hopcroft ("Convergent Learning", 2015) by their correlations. For n networks,
let :math:`A_p`, of shape ``(channels, samples)``, be client p's outputs at a layer over a calibration set, every channel
centred and scaled to norm 1: :math:`\langle A_p, A_q \rangle` of two mapped clients is the sum of the correlations of the
neurons that they put in the same places. So activations are one more tensor with one permuted axis, the n-model objective
(C2M3, Eq. 4) takes them like any other, and the maps are as cycle-consistent as without them.

They stand beside the parameters; `docs/matching.md` has what that gains, and what leaving the parameters out loses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from c2m3_fl.activations.calibration import Batch, Calibration, CalibrationSet
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.network import Architecture, Hook, Network, private_network
from c2m3_fl.activations.sites import Site
from c2m3_fl.matching.default import UniverseMatcher
from c2m3_fl.matching.matcher import Matcher, Matching
from c2m3_fl.matching.problem import MatchingProblem
from c2m3_fl.symmetry import Axis, Factor, PermutationSpec, Segment

_SAMPLES = 4096


@dataclass(frozen=True)
class ActivationMatcher:
    """Matching by activations on a calibration set, together with the parameters or in place of them.

    Parameters
    ----------
    module
        The clients' architecture, or a function without arguments that builds it. It is left as it is.
    calibration
        Inputs: one tensor, or an iterable of batches (tensors, or tuples that begin with one); read once.
    share
        Squared norm of the activations of each group, relative to that of the parameters that carry the group. Infinity
        is pure activation matching, without the parameters.
    matcher
        What solves the problem.

    Raises
    ------
    ValueError
        If the share is not positive.
    RepairError
        If the calibration set is empty or malformed; when it matches, if the module does not fit the clients, activations
        are not finite, or a group has no layer that shows it and the parameters are left out.

    Notes
    -----
    Activations are read where REPAIR measures them: the outputs of layers with a weight and a bias per channel
    (`c2m3_fl.activations.sites`). Of all examples and positions 4,096 are kept, the same ones of every client.

    The objectives in the matching's iterations include the activations; `Alignment.objective` does not.

    Memory, beyond that of the solver: at most 4,096 numbers per channel and client, which the solver multiplies like the
    clients' own size.

    Examples
    --------
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> matcher = ActivationMatcher(network, calibration=torch.randn(64, 4))
    """

    module: Architecture = field(repr=False)
    calibration: Calibration | CalibrationSet = field(repr=False)
    share: float = 0.1
    matcher: Matcher = field(default_factory=UniverseMatcher)

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise ValueError(f"share is {self.share}; it must be positive, or infinite to leave the parameters out")
        module = self.module if isinstance(self.module, nn.Module) else self.module()
        object.__setattr__(self, "calibration", CalibrationSet.read(self.calibration, module))

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        if len(problem.state_dicts) != problem.clients:
            raise ValueError("activations can only be matched of whole clients, not of sums or parts of them")
        clients, spec = self._extended(problem.state_dicts, problem.spec, problem.device)
        return self.matcher.match(MatchingProblem.build(clients, spec, problem.weights, problem.device))

    def _extended(
        self, state_dicts: Sequence[Mapping[str, Tensor]], spec: PermutationSpec, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], PermutationSpec]:
        """The clients with their activations as tensors of their own, and the spec of both."""
        assert isinstance(self.calibration, CalibrationSet)
        batches = self.calibration.batches
        with private_network(self.module, device) as network:
            network.load(state_dicts[0], "client 0")
            sites = _movable(network.sites(batches[0]), spec)
            self._check(sites, spec)
            recorded = [_record(network, client, f"client {p}", sites, batches) for p, client in enumerate(state_dicts)]
        clients, tensors = [dict(client) for client in state_dicts], dict(spec.tensors)
        for site, axis in sites.items():
            rows = torch.cat([own.pop(site.name) for own in recorded])
            scale = self._scale(float(rows.square().sum()), axis, sites, state_dicts, spec)
            rows = _compressed(rows * scale)
            name = f"{site.name}.activations"
            tensors[name] = (axis, Axis((Segment((Factor(rows.shape[1]),)),)))
            for client, activations in zip(clients, torch.split(rows, axis.size), strict=True):
                client[name] = activations
        carried = spec.tensors.keys() if math.isinf(self.share) else spec.carried
        return clients, PermutationSpec(spec.groups, tensors, frozenset(carried))

    def _check(self, sites: Mapping[Site, Axis], spec: PermutationSpec) -> None:
        unseen = sorted(set(spec.groups).difference(*(axis.groups for axis in sites.values())))
        if not sites or (unseen and math.isinf(self.share)):
            raise RepairError(
                f"no layer with a weight and a bias per channel shows the groups {', '.join(unseen)}, so their activations "
                "cannot be matched: " + ("match by the parameters" if not sites else "give a finite share")
            )

    def _scale(
        self,
        squared: float,
        axis: Axis,
        sites: Mapping[Site, Axis],
        state_dicts: Sequence[Mapping[str, Tensor]],
        spec: PermutationSpec,
    ) -> float:
        if math.isinf(self.share) or squared == 0:
            return 1.0
        names = [name for name, axes in spec.tensors.items() if any(each.groups & axis.groups for each in axes)]
        parameters = sum(
            float(client[name].double().square().sum())
            for client in state_dicts
            for name in names
            if name not in spec.carried
        )
        rivals = sum(bool(other.groups & axis.groups) for other in sites.values())
        return math.sqrt(self.share * parameters / squared / rivals)


def _movable(sites: Sequence[Site], spec: PermutationSpec) -> dict[Site, Axis]:
    """The sites whose channels some group moves, each with the axis of its channels."""
    axes = {site: spec.tensors[f"{site.name}.bias".removeprefix(".")][0] for site in sites if site.affine}
    return {site: axis for site, axis in axes.items() if axis.groups}


def _record(
    network: Network, state_dict: Mapping[str, Tensor], what: str, sites: Mapping[Site, Axis], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Per site the activations, ``(channels, samples)``, every channel centred and scaled to norm 1."""
    parts: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    examples = sum(batch.size for batch in batches)
    kept = 0

    def watch(site: Site) -> Hook:
        def hook(layer: object, args: object, kwargs: object, output: Any) -> None:
            rows = output.movedim(site.axis, -1).flatten(0, -2).float()
            if not bool(torch.isfinite(rows).all()):
                raise RepairError(f"{what}: activations of the layer {site.name!r} are not finite")
            generator = torch.Generator().manual_seed(len(parts[site.name]))
            chosen = torch.randperm(len(rows), generator=generator)[:kept]
            parts[site.name].append(rows[chosen.to(rows.device)])

        return hook

    network.load(state_dict, what)
    with network.watched({site.name: watch(site) for site in sites}):
        for index, batch in enumerate(batches):
            kept = -(-_SAMPLES * batch.size // examples)
            network.forward(index, batch, what)
    return {name: _standardised(torch.cat(rows).T) for name, rows in parts.items()}


def _standardised(values: Tensor) -> Tensor:
    centred = values - values.mean(1, keepdim=True)
    norms = centred.norm(dim=1, keepdim=True)
    # a channel that never varies becomes zero, not rounding errors blown up to norm 1
    varies = norms > 1e-6 * values.norm(dim=1, keepdim=True)
    return torch.where(varies, centred / norms, 0.0)


def _compressed(rows: Tensor) -> Tensor:
    """Rows with the same inner products, and no more columns than there are rows."""
    return torch.linalg.qr(rows.T, mode="r").R.T.contiguous() if rows.shape[1] > rows.shape[0] else rows
