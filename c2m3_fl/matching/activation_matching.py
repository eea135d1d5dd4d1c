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
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from c2m3_fl.activations.calibration import Calibration, CalibrationSet
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.network import Architecture, private_network
from c2m3_fl.activations.recording import Outputs, record
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
    (`c2m3_fl.activations.sites`). Of all examples and positions about 4,096 are kept, the same ones of every client.

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
        _check_share(self.share)
        module = self.module if isinstance(self.module, nn.Module) else self.module()
        object.__setattr__(self, "calibration", CalibrationSet.read(self.calibration, module))

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        assert isinstance(self.calibration, CalibrationSet)
        batches = self.calibration.batches
        whole = _whole_clients(problem)
        with private_network(self.module, problem.device) as network:
            network.load(whole[0], "client 0")
            sites = network.sites(batches[0])
            rows = activation_rows(sites, problem.spec)
            recordings = []
            for position, client in enumerate(whole):
                recorded = record(network, client, sites, batches, f"client {position}", rows=rows)
                if recorded.fault:
                    raise RepairError(f"client {position}: {recorded.fault}")
                recordings.append(recorded.outputs)
        return _matched(self.matcher, with_activations(problem, recordings, self.share))


@dataclass(frozen=True)
class RecordedActivationMatcher:
    """The same from outputs that were recorded before.

    Parameters
    ----------
    clients
        The clients' state dicts. A matching of others, such as averages of these, is solved without activations.
    outputs
        Per client its outputs, as `c2m3_fl.activations.recording.record` has kept them for `activation_rows`.
    share, matcher
        See `ActivationMatcher`.

    Raises
    ------
    ValueError
        If the share is not positive, or there are not as many recordings as clients.
    RepairError
        When it matches, if a group has no layer that shows it and the parameters are left out.
    """

    clients: Sequence[Mapping[str, Tensor]] = field(repr=False)
    outputs: Sequence[Mapping[str, Outputs]] = field(repr=False)
    share: float = 0.1
    matcher: Matcher = field(default_factory=UniverseMatcher)

    def __post_init__(self) -> None:
        _check_share(self.share)
        if len(self.clients) != len(self.outputs):
            raise ValueError(f"{len(self.outputs)} recording(s) of {len(self.clients)} client(s)")

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        known = {id(client): own for client, own in zip(self.clients, self.outputs, strict=True)}
        outputs = [known.get(id(client)) for client in problem.state_dicts]
        found = [own for own in outputs if own is not None]
        if len(found) < problem.clients:
            return self.matcher.match(problem)
        return _matched(self.matcher, with_activations(problem, found, self.share))


def activation_rows(sites: Sequence[Site], spec: PermutationSpec) -> dict[str, int]:
    """Per site whose channels some group moves how many rows of its output activation matching takes."""
    return {site.name: _SAMPLES for site in sites if site.affine and _axis(spec, site.channels).groups}


def with_activations(
    problem: MatchingProblem, outputs: Sequence[Mapping[str, Outputs]], share: float
) -> MatchingProblem:
    """A matching problem whose clients have their activations as tensors of their own.

    Parameters
    ----------
    problem
        Of whole clients.
    outputs
        Per client, in the problem's order, its outputs at some sites. Those that no group moves are not needed.
    share
        See `ActivationMatcher`.

    Raises
    ------
    ValueError
        If the problem is of sums or parts of clients.
    RepairError
        If no site shows a group; or not every group is shown, and the parameters are left out.
    """
    spec, whole = problem.spec, _whole_clients(problem)
    axes = {site: _axis(spec, own.channels) for site, own in outputs[0].items()}
    axes = {site: axis for site, axis in axes.items() if axis.groups}
    _check(axes, spec, share)
    clients, tensors = [dict(client) for client in whole], dict(spec.tensors)
    for site, axis in axes.items():
        rows = torch.cat([_standardised(own[site].values.T) for own in outputs])
        rows = _compressed(rows * _scale(float(rows.square().sum()), site, axes, problem, share))
        name = f"{site}.activations"
        tensors[name] = (axis, Axis((Segment((Factor(rows.shape[1]),)),)))
        for client, activations in zip(clients, torch.split(rows, axis.size), strict=True):
            client[name] = activations
    carried = spec.tensors.keys() if math.isinf(share) else spec.carried
    extended = PermutationSpec(spec.groups, tensors, frozenset(carried))
    return MatchingProblem.build(clients, extended, problem.weights, problem.device)


def _whole_clients(problem: MatchingProblem) -> tuple[Mapping[str, Tensor], ...]:
    if len(problem.state_dicts) != problem.clients:
        raise ValueError("activations can only be matched of whole clients, not of sums or parts of them")
    return problem.state_dicts


def _matched(matcher: Matcher, extended: MatchingProblem) -> Matching:
    """Solve a problem with activations; the objective that the matcher knows would include them."""
    return replace(matcher.match(extended), objective=None)


def _check_share(share: float) -> None:
    if not share > 0:
        raise ValueError(f"share is {share}; it must be positive, or infinite to leave the parameters out")


def _check(axes: Mapping[str, Axis], spec: PermutationSpec, share: float) -> None:
    unseen = sorted(set(spec.groups).difference(*(axis.groups for axis in axes.values())))
    if not axes or (unseen and math.isinf(share)):
        raise RepairError(
            f"no layer with a weight and a bias per channel shows the groups {', '.join(unseen)}, so their activations "
            "cannot be matched: " + ("match by the parameters" if not axes else "give a finite share")
        )


def _axis(spec: PermutationSpec, channels: tuple[str, int]) -> Axis:
    tensor, axis = channels
    return spec.tensors[tensor][axis]


def _scale(squared: float, site: str, axes: Mapping[str, Axis], problem: MatchingProblem, share: float) -> float:
    """By what to multiply a site's activations, so that those of its groups have their share."""
    if math.isinf(share) or squared == 0:
        return 1.0
    spec, groups = problem.spec, axes[site].groups
    names = [name for name, each in spec.tensors.items() if any(axis.groups & groups for axis in each)]
    parameters = sum(
        float(client[name].double().square().sum())
        for client in problem.state_dicts
        for name in names
        if name not in spec.carried
    )
    rivals = sum(bool(other.groups & groups) for other in axes.values())
    return math.sqrt(share * parameters / squared / rivals)


def _standardised(values: Tensor) -> Tensor:
    centred = values - values.mean(1, keepdim=True)
    norms = centred.norm(dim=1, keepdim=True)
    # a channel that never varies becomes zero, not rounding errors blown up to norm 1
    varies = norms > 1e-6 * values.norm(dim=1, keepdim=True)
    return torch.where(varies, centred / norms, 0.0)


def _compressed(rows: Tensor) -> Tensor:
    """Rows with the same inner products, and no more columns than there are rows."""
    return torch.linalg.qr(rows.T, mode="r").R.T.contiguous() if rows.shape[1] > rows.shape[0] else rows
