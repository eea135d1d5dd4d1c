"""All of C2M3 in one call: align the clients, average them in the universe, repair the average (Algorithm 2 and A.4)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from c2m3_fl.activations.calibration import Calibration, CalibrationSet
from c2m3_fl.activations.network import Architecture
from c2m3_fl.alignment import Alignment, align
from c2m3_fl.averaging import average
from c2m3_fl.device import resolve_device
from c2m3_fl.guard import Candidate, Score, best, score, target
from c2m3_fl.hierarchy import MappedClients, align_in_groups
from c2m3_fl.matching import IdentityFirst, Matcher, resolve_matcher
from c2m3_fl.repair.sequential import Method
from c2m3_fl.repair.sequential import repair as repair_network
from c2m3_fl.robust import AVERAGES, Robust, capped, dissenters, outliers
from c2m3_fl.symmetry import PermutationSpec, SpecError
from c2m3_fl.validation import check_clients

_NOT_FINITE = "its predictions on the calibration set are not finite"
REPAIRED: dict[Candidate, Candidate] = {"average": "average-repaired", "aligned": "aligned-repaired"}
"""What each candidate is called after its repair."""


@dataclass(frozen=True)
class Aggregation:
    """The result of `aggregate`.

    Attributes
    ----------
    state_dict
        The merged network: names, shapes and dtypes are the clients'.
    average
        The average in the universe, before repair.
    alignment
        The clients' permutations into the universe, and how they were found.
    chosen
        Which candidate `state_dict` is (see `c2m3_fl.guard`).
    scores, errors
        The candidates' losses on the calibration set, and numbers of examples that they get wrong, if the guard scored
        them.
    excluded
        Clients, by position, that were left out, and why; `alignment` holds the others.
    repair_seconds, guard_seconds
        Wall time of all repairs, and of scoring; 0 where there was none.
    """

    state_dict: dict[str, Tensor]
    average: dict[str, Tensor]
    alignment: Alignment
    chosen: Candidate
    scores: Mapping[Candidate, float] = field(default_factory=dict)
    errors: Mapping[Candidate, int] = field(default_factory=dict)
    excluded: Mapping[int, str] = field(default_factory=dict)
    repair_seconds: float = 0.0
    guard_seconds: float = 0.0

    @property
    def permutations(self) -> tuple[dict[str, Tensor], ...]:
        """The maps of the clients that were averaged into `state_dict`: the alignment's, or the identity."""
        maps = self.alignment.permutations
        aligned = self.chosen in ("aligned", "aligned-repaired")
        return maps if aligned else tuple(self.alignment.spec.identity() for _ in maps)


def aggregate(
    module: Architecture,
    state_dicts: Sequence[Mapping[str, Tensor]],
    *,
    weights: Sequence[float] | None = None,
    spec: PermutationSpec | None = None,
    matcher: str | Matcher = "default",
    calibration: Calibration | CalibrationSet | None = None,
    repair: Method | None = "repair",
    guard: bool = True,
    robust: Robust | None = None,
    group_size: int | None = None,
    device: str | torch.device = "auto",
) -> Aggregation:
    """Merge clients' networks: align, average in the universe, repair.

    Parameters
    ----------
    module
        The clients' architecture, or a factory of it; its own weights do not matter and are not changed.
    state_dicts
        The clients' tensors.
    weights
        One non-negative weight per client, for example its number of examples; None for equal weights. They enter the
        matching, the average and the repair.
    spec
        The permutation groups; None to find them by tracing the module on the first batch of `calibration`.
    matcher
        See `align`.
    calibration
        Inputs for the repair and the guard: a tensor, or an iterable of batches (inputs, or tuples that begin with
        inputs and labels); None for neither.
    repair
        The method, see `c2m3_fl.repair.repair`; None for no repair.
    guard
        Whether to score the plain average, the average in the universe and their repaired versions on the calibration
        set, and to return the best (see `c2m3_fl.guard`); without a calibration set the objective decides between the
        two averages. It also skips the matching where the identity is proved optimal.
    robust
        ``"exclude"`` caps extreme weights, leaves out clients whose aligned distance to the others is an outlier or that
        contradict the others on the calibration set (see `c2m3_fl.robust`), and aligns the rest again; ``"median"`` and
        ``"trimmed-mean"`` besides average entry by entry (see `c2m3_fl.average`); None trusts every client.
    group_size
        Most clients to align at once, to bound memory (see `c2m3_fl.align_in_groups`); None for no bound.
    device
        ``"auto"`` (CUDA where present) or a torch device.

    Returns
    -------
    Aggregation
        With the merged state dict, on the device of the first client's tensors.

    Raises
    ------
    ClientError
        Naming the client that cannot be merged, or whose weight is unusable.
    SpecError
        If the spec does not fit, or there is neither a spec nor an input to trace the module with.
    RepairError
        If the calibration set is empty or malformed, or does not fit the module.
    """
    network = module if isinstance(module, nn.Module) else module()
    data = CalibrationSet.read(calibration, network) if calibration is not None else None
    found = spec if spec is not None else trace(module, data)
    solver, place = resolve_matcher(matcher), resolve_device(device)
    checked = check_clients(state_dicts, weights)
    if robust is not None:
        checked = capped(checked)
    clock = time.perf_counter()
    wanted = target(module, state_dicts, data, weights=checked, device=place) if guard and data is not None else None
    guard_seconds = time.perf_counter() - clock

    excluded = {} if wanted is None else dict.fromkeys(sorted(wanted.broken), _NOT_FINITE)
    if wanted is not None and robust is not None:
        excluded |= dissenters(wanted.votes)
    aligner = _Aligner(found, IdentityFirst(solver) if guard else solver, place, group_size)
    aligned = aligner.settle(state_dicts, checked, excluded, exclude=robust is not None)
    clients, shares, alignment, universe = aligned.clients, aligned.weights, aligned.alignment, aligned.universe
    if wanted is not None and data is not None and len(aligned.excluded) > len(wanted.broken):
        wanted = target(module, clients, data, weights=shares, device=place)
    method = AVERAGES[robust]
    averaged = average(universe, shares, method=method)
    candidates = [_Merged("aligned" if alignment.moved else "average", averaged, universe)]
    if guard and alignment.moved and (wanted is not None or alignment.objective < alignment.objective_before):
        candidates.insert(0, _Merged("average", average(clients, shares, method=method), clients))
    repair_seconds = 0.0
    if repair is not None and data is not None:
        clock = time.perf_counter()
        candidates += [
            _repaired(module, each, data, weights=shares, method=repair, device=place) for each in candidates
        ]
        repair_seconds = time.perf_counter() - clock

    scores: list[Score] = []
    chosen = 0 if guard and wanted is None else len(candidates) - 1
    if wanted is not None:
        clock = time.perf_counter()
        scores = score(module, [each.state_dict for each in candidates], wanted, device=place)
        chosen = best(scores, 0.0 if alignment.moved else wanted.doubt)
        guard_seconds += time.perf_counter() - clock
    return Aggregation(
        state_dict=candidates[chosen].state_dict,
        average=averaged,
        alignment=alignment,
        chosen=candidates[chosen].name,
        scores={each.name: found.loss for each, found in zip(candidates, scores, strict=False)},
        errors={each.name: found.errors for each, found in zip(candidates, scores, strict=False)},
        excluded=aligned.excluded,
        repair_seconds=repair_seconds,
        guard_seconds=guard_seconds,
    )


@dataclass(frozen=True)
class _Aligned:
    """The clients that are merged."""

    clients: Sequence[Mapping[str, Tensor]]
    weights: list[float]
    alignment: Alignment
    universe: Sequence[Mapping[str, Tensor]]
    excluded: dict[int, str]


@dataclass(frozen=True)
class _Aligner:
    """How clients are aligned, all at once or in groups."""

    spec: PermutationSpec
    matcher: Matcher
    device: torch.device
    group_size: int | None

    def settle(
        self,
        state_dicts: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float],
        excluded: Mapping[int, str],
        *,
        exclude: bool,
    ) -> _Aligned:
        """Align all but those excluded, again and again while there are outliers to exclude."""
        excluded = dict(excluded)
        while True:
            kept = [position for position in range(len(state_dicts)) if position not in excluded]
            clients, shares = [state_dicts[position] for position in kept], [weights[position] for position in kept]
            alignment, universe = self._align(clients, shares)
            found = outliers(universe) if exclude else {}
            if not found or 2 * (len(kept) - len(found)) <= len(state_dicts):
                return _Aligned(clients, shares, alignment, universe, excluded)
            excluded |= {kept[position]: reason for position, reason in found.items()}

    def _align(
        self, clients: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> tuple[Alignment, Sequence[Mapping[str, Tensor]]]:
        if self.group_size is None:
            alignment = align(clients, self.spec, weights=weights, matcher=self.matcher, device=self.device)
            return alignment, alignment.apply(clients)
        alignment = align_in_groups(
            clients,
            self.spec,
            group_size=self.group_size,
            weights=weights,
            matcher=self.matcher,
            device=self.device,
        )
        return alignment, MappedClients(alignment, clients)


@dataclass(frozen=True)
class _Merged:
    """A candidate, and the clients' tensors as they were averaged into it."""

    name: Candidate
    state_dict: dict[str, Tensor]
    endpoints: Sequence[Mapping[str, Tensor]]


def _repaired(
    module: Architecture,
    merged: _Merged,
    data: CalibrationSet,
    *,
    weights: Sequence[float],
    method: Method,
    device: torch.device,
) -> _Merged:
    state_dict = repair_network(
        module, merged.state_dict, merged.endpoints, data, weights=weights, method=method, device=device
    )
    return _Merged(REPAIRED[merged.name], state_dict, merged.endpoints)


def trace(module: Architecture, calibration: CalibrationSet | None) -> PermutationSpec:
    """Find a module's permutation groups with the first two inputs of a calibration set.

    Raises
    ------
    SpecError
        If there is no input, or the module cannot be traced.
    """
    if calibration is None:
        raise SpecError(
            "the permutation groups are unknown: give a spec, or calibration inputs to trace the module with"
        )
    network = module if isinstance(module, nn.Module) else module()
    example = calibration.batches[0].first(2)
    return PermutationSpec.from_module(network, *example.args, kwargs=example.kwargs)
