"""The steps of one merge: measure the clients, align those that belong, average, repair, choose."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from c2m3_fl.activations.calibration import CalibrationSet
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.network import Network
from c2m3_fl.activations.recording import Outputs, Recording, record
from c2m3_fl.activations.sites import Site
from c2m3_fl.alignment import Alignment, MappedClients, align_clients
from c2m3_fl.averaging import average_clients
from c2m3_fl.errors import ClientError, OptionError
from c2m3_fl.guard import CANDIDATES, Candidate, Score, Target, best, precedence, score, target, votes
from c2m3_fl.hierarchy import align_grouped
from c2m3_fl.layout import StateDict
from c2m3_fl.matching import IdentityFirst, RecordedActivationMatcher, resolve_matcher
from c2m3_fl.matching.activation_matching import activation_rows
from c2m3_fl.options import DEFAULTS, MergeOptions
from c2m3_fl.predictions import PredictionReader, Task, find_task
from c2m3_fl.repair.classifier import refit_classifier
from c2m3_fl.repair.methods import Method, treatment
from c2m3_fl.repair.plan import recorded_rows
from c2m3_fl.repair.sequential import repair_recorded
from c2m3_fl.robust import AVERAGES, capped, dissenters, outliers
from c2m3_fl.round import Clients
from c2m3_fl.symmetry import PermutationSpec

_log = logging.getLogger(__name__)

REPAIRED: dict[Candidate, Candidate] = {"average": "average-repaired", "aligned": "aligned-repaired"}
"""What each candidate is called after its repair."""

STEPS = ("measuring", "matching", "repair", "guard")
"""What time is spent on; measuring is the clients' forward passes over the calibration set."""


@dataclass(frozen=True)
class Aggregation:
    """The result of `aggregate`. Positions are those of the clients as the caller gave them.

    Attributes
    ----------
    state_dict
        The merged network: names, shapes and dtypes are the clients'.
    average
        The average in the universe, before repair.
    alignment
        The permutations of the clients that were merged, in the order of `merged`, and how they were found.
    merged
        Their positions, ascending.
    chosen
        Which candidate `state_dict` is (see `c2m3_fl.guard`).
    scores, errors
        The candidates' losses on the calibration set, and numbers of examples that they get wrong, if the guard scored
        them; in the order of `c2m3_fl.guard.CANDIDATES`.
    excluded
        Clients, by position, that were left out, and why.
    seconds
        Wall time by step; see `STEPS`.
    """

    state_dict: dict[str, Tensor]
    average: dict[str, Tensor]
    alignment: Alignment
    merged: tuple[int, ...]
    chosen: Candidate
    scores: Mapping[Candidate, float] = field(default_factory=dict)
    errors: Mapping[Candidate, float] = field(default_factory=dict)
    excluded: Mapping[int, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def permutations(self) -> dict[int, dict[str, Tensor]]:
        """By position the maps of the clients that were averaged into `state_dict`: the alignment's, or the identity."""
        aligned = self.chosen in ("aligned", "aligned-repaired")
        return {
            position: maps if aligned else self.alignment.spec.identity()
            for position, maps in zip(self.merged, self.alignment.permutations, strict=True)
        }


@dataclass(frozen=True)
class _Base:
    """An average, and the clients as they were averaged: their tensors are not needed any more, their recordings are."""

    name: Candidate
    average: dict[str, Tensor]
    recordings: Sequence[Recording]


@dataclass(frozen=True)
class _Aligned:
    """The clients that are merged, with their numbers in the round, and their maps; by position, who is left out."""

    kept: list[int]
    clients: Clients
    alignment: Alignment
    excluded: dict[int, str]


@dataclass
class Session:
    """One merge on a private network; `run` it once.

    Attributes
    ----------
    network
        Where everything is loaded and measured.
    spec, options, data, trained_on
        See `c2m3_fl.merger.Merger`.
    seconds
        What the steps took.
    """

    network: Network
    spec: PermutationSpec
    options: MergeOptions
    data: CalibrationSet | None
    trained_on: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, clients: Clients) -> Aggregation:
        """All steps."""
        sites, recordings = self._measured(clients)
        aligned = self._aligned(clients, recordings)
        recordings = [recordings[number] for number in aligned.kept] if recordings else []
        wanted = self._wanted(aligned.clients, recordings)
        bases = self._bases(aligned, recordings)
        candidates: dict[Candidate, dict[str, Tensor]] = {base.name: base.average for base in bases}
        if self.options.repair is not None and self.data is not None:
            for base in bases:
                if (repaired := self._repaired(base, sites, aligned.clients.weights)) is not None:
                    candidates[REPAIRED[base.name]] = repaired
        candidates = {name: candidates[name] for name in CANDIDATES if name in candidates}
        scores = {} if wanted is None or not self.options.guard else self._scored(candidates, wanted)
        if scores:
            assert wanted is not None
            alignment = aligned.alignment
            order = precedence(gained=alignment.objective > alignment.objective_before)
            ordered = {name: scores[name] for name in order if name in scores}
            chosen = best(ordered, 0.0 if alignment.moved else wanted.doubt)
        else:
            chosen = next(reversed(candidates))
        if self._refits:
            candidates[chosen] = self._refitted(candidates[chosen], sites, wanted)
        return self._result(aligned, candidates, chosen, scores, bases[-1].average)

    def _measured(self, clients: Clients) -> tuple[Sequence[Site], list[Recording]]:
        """One forward pass of each client over the calibration set, which serves guard and repair."""
        data, options = self.data, self.options
        if data is None or not (options.guard or options.repair or self._refits):
            return (), []
        read = PredictionReader(options.predictions) if options.guard or self._refits else None
        started = time.perf_counter()
        self.network.load(clients.state_dicts[0], "the network")
        sites = [site for site in self.network.sites(data.batches[0]) if self._is_sent(site)]
        rows = dict(recorded_rows(self.network, sites, treatment(self._method()))) if options.repair else {}
        if self._by_activations:
            rows |= {name: max(rows.get(name, 0), wanted) for name, wanted in activation_rows(sites, self.spec).items()}
        found = [
            record(
                self.network,
                state_dict,
                sites,
                data.batches,
                f"client {position}",
                read=read,
                rows=rows,
                recalibrate=True,  # running statistics lag behind clients that trained for a short while
            )
            for state_dict, position in zip(clients.state_dicts, clients.positions, strict=True)
        ]
        self.seconds["measuring"] = time.perf_counter() - started
        return sites, found

    def _is_sent(self, site: Site) -> bool:
        """Whether the clients send all of a site's tensors, so that it can be corrected."""
        layer = self.network.layer(site)
        names = (name for name, _ in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)])
        prefix = f"{site.name}." if site.name else ""
        state = self.network.module.state_dict()
        return all(f"{prefix}{name}" in self.network.names for name in names if f"{prefix}{name}" in state)

    def _aligned(self, clients: Clients, recordings: Sequence[Recording]) -> _Aligned:
        """Align all clients that belong, again and again while there are outliers to leave out."""
        robust = self.options.robust
        excluded = {number: fault for number, each in enumerate(recordings) if (fault := each.fault)}
        if len(excluded) == len(clients):
            raise ClientError(f"no client can be merged: {next(iter(excluded.values()))}")
        if robust is not None and recordings:
            sound = [number for number in range(len(clients)) if number not in excluded]
            found = dissenters(votes([recordings[number].predictions for number in sound]))
            excluded |= {sound[number]: reason for number, reason in found.items()}
        started = time.perf_counter()
        while True:
            kept = [number for number in range(len(clients)) if number not in excluded]
            members = clients.subset(kept)
            if robust is not None:
                members = members.weighted(capped(members.weights))
            alignment = self._alignment(members, [recordings[number] for number in kept] if recordings else [])
            found = outliers(MappedClients(alignment, members.state_dicts)) if robust is not None else {}
            if not found or 2 * (len(kept) - len(found)) <= len(clients):
                self.seconds["matching"] = time.perf_counter() - started
                named = {clients.positions[number]: reason for number, reason in excluded.items()}
                return _Aligned(kept, members, alignment, named)
            excluded |= {kept[number]: reason for number, reason in found.items()}

    @property
    def _by_activations(self) -> bool:
        return self.options.matcher == DEFAULTS.matcher and self.options.activations > 0

    def _alignment(self, clients: Clients, recordings: Sequence[Recording]) -> Alignment:
        options, device = self.options, self.network.device
        matcher = resolve_matcher(options.matcher)
        outputs = [recording.outputs for recording in recordings]
        if self._by_activations and any(self._moves(each) for each in (outputs[0].values() if outputs else ())):
            matcher = RecordedActivationMatcher(clients.state_dicts, outputs, options.activations, matcher)
        solver = IdentityFirst(matcher) if options.guard else matcher
        if options.group_size is None:
            return align_clients(clients, self.spec, solver, device)
        return align_grouped(clients, self.spec, solver, device, options.group_size)

    def _moves(self, outputs: Outputs) -> bool:
        """Whether some group moves the channels of a layer's output."""
        tensor, axis = outputs.channels
        return bool(self.spec.tensors[tensor][axis].groups)

    def _wanted(self, clients: Clients, recordings: Sequence[Recording]) -> Target | None:
        if not recordings or not (self.options.guard or self._refits):
            return None
        assert self.data is not None
        targets = self.data.targets
        return target(self._task(recordings[0]), [each.predictions for each in recordings], clients.weights, targets)

    def _task(self, recording: Recording) -> Task:
        options, data = self.options, self.data
        assert data is not None
        key = ""
        if options.task is None and data.targets is None:
            output = self.network.forward(0, data.batches[0], "the network", 2)
            key = PredictionReader(options.predictions).locate(output)[0]
        return find_task(options.task, recording.predictions, data.targets, key)

    def _bases(self, aligned: _Aligned, recordings: Sequence[Recording]) -> list[_Base]:
        """The averages to choose from: the plain one, the one in the universe, or both."""
        options, spec, alignment, clients = self.options, self.spec, aligned.alignment, aligned.clients
        method = AVERAGES[options.robust]
        plain = options.guard and (bool(recordings) or alignment.objective < alignment.objective_before)
        bases = []
        if plain or not alignment.moved:
            average = average_clients(clients, clients.state_dicts, method, clients.alike)
            bases.append(_Base("average", average, recordings))
        if alignment.moved and (recordings or not bases):
            still = clients.alike.difference(spec.moved_tensors())
            average = average_clients(clients, MappedClients(alignment, clients.state_dicts), method, still)
            mapped = [each.mapped(spec, maps) for each, maps in zip(recordings, alignment.permutations, strict=False)]
            bases.append(_Base("aligned", average, mapped))
        return bases

    def _repaired(self, base: _Base, sites: Sequence[Site], weights: Sequence[float]) -> dict[str, Tensor] | None:
        """The average after its repair, or None if it cannot be repaired and another can be had."""
        assert self.data is not None
        counted = [number for number, weight in enumerate(weights) if weight > 0]
        started = time.perf_counter()
        try:
            return repair_recorded(
                self.network,
                base.average,
                [base.recordings[number] for number in counted],
                sites,
                self.data.batches,
                weights=[weights[number] for number in counted],
                method=self._method(),
            )
        except RepairError as error:
            if not self.options.guard:
                raise
            _log.warning("the candidate %r is left out: %s", REPAIRED[base.name], error)
            return None
        finally:
            self._spend("repair", started)

    @property
    def _refits(self) -> bool:
        return self.options.classifier == "refit"

    def _refitted(self, merged: dict[str, Tensor], sites: Sequence[Site], wanted: Target | None) -> dict[str, Tensor]:
        """The network with its classifier fitted to what it should predict."""
        if wanted is None or self.data is None:
            raise OptionError('classifier="refit" needs calibration inputs')
        if wanted.task.kind != "classes" or wanted.wanted[0].dim() != 1:
            raise OptionError(
                'classifier="refit" needs a network that scores one of several classes: say so by task="classification", '
                "or give targets"
            )
        started = time.perf_counter()
        refitted = refit_classifier(self.network, merged, sites, self.data.batches, wanted.wanted, doubt=wanted.doubt)
        self._spend("repair", started)
        return refitted

    def _spend(self, step: str, started: float) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started

    def _method(self) -> Method:
        if self.options.repair == "auto":
            return "least-squares-bounded" if self.trained_on else "least-squares"
        assert self.options.repair is not None
        return self.options.repair

    def _scored(self, candidates: Mapping[Candidate, StateDict], wanted: Target) -> dict[Candidate, Score]:
        assert self.data is not None
        read = PredictionReader(self.options.predictions)
        started = time.perf_counter()
        scores = {
            name: score(self.network, each, self.data.batches, wanted, read=read, what=f"the candidate {name!r}")
            for name, each in candidates.items()
        }
        self.seconds["guard"] = time.perf_counter() - started
        return scores

    def _result(
        self,
        aligned: _Aligned,
        candidates: Mapping[Candidate, dict[str, Tensor]],
        chosen: Candidate,
        scores: Mapping[Candidate, Score],
        average: dict[str, Tensor],
    ) -> Aggregation:
        positions = aligned.clients.positions
        return Aggregation(
            state_dict=candidates[chosen],
            average=average,
            alignment=aligned.alignment.by_position(positions),
            merged=tuple(sorted(positions)),
            chosen=chosen,
            scores={name: found.loss for name, found in scores.items()},
            errors={name: found.errors for name, found in scores.items()},
            excluded=dict(sorted(aligned.excluded.items())),
            seconds=self.seconds,
        )
