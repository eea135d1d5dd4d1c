"""The Flower strategy: FedAvg whose average is taken in the universe. Adapts Flower to `c2m3_fl.aggregation`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from c2m3_fl.activations.calibration import Calibration, CalibrationSet
from c2m3_fl.activations.network import Architecture
from c2m3_fl.aggregation import REPAIRED, Aggregation, aggregate, trace
from c2m3_fl.device import resolve_device
from c2m3_fl.federation.checkpoint import Checkpoint, CheckpointError
from c2m3_fl.federation.client import request_moments
from c2m3_fl.federation.exchange import measured, repair_by_clients
from c2m3_fl.federation.momentum import ServerMomentum
from c2m3_fl.federation.replies import CLIENT_ID_KEY, Reply, is_weight, leave_out, read_replies
from c2m3_fl.guard import CANDIDATES
from c2m3_fl.matching import Matcher, resolve_matcher
from c2m3_fl.repair.sequential import BOUNDED, Method
from c2m3_fl.robust import Robust
from c2m3_fl.symmetry import PermutationSpec
from c2m3_fl.validation import defect

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]
MomentsFrom = Literal["server", "clients"]

_CLIPPING_KEY = "clipping_norm"  # by which Flower's strategy for client-side clipping speaks to its mods


class C2M3(FedAvg):
    """Cycle-consistent multi-model merging (C2M3, NeurIPS 2024).

    Each round the clients' networks are mapped into one universe by permutations of their neurons, found jointly for all
    of them; averaged there, weighted by their numbers of examples; and repaired: the average's activations get the
    clients' means and standard deviations. The global model keeps the clients' architecture.

    A reply that cannot be merged (an error, NaN, other keys, shapes or dtypes, an unusable weight, an absurd size) is left
    out of the round and named in the log. If nothing is left, the global model stays as it was.

    Parameters
    ----------
    module : nn.Module or callable
        The clients' architecture, or a function without arguments that builds it. It is not changed.
    calibration : Tensor or iterable, optional
        Inputs on the server for the repair and the guard: a tensor, or an iterable of batches (inputs, or tuples that
        begin with inputs; integer classes in second place serve the guard). Read once, here. Without it there is no
        repair unless the clients measure, and `spec` must be given.
    spec : PermutationSpec, optional
        The permutation groups. By default they are traced, here and once, with the first calibration inputs.
    matcher : str or Matcher (default: "default")
        See `c2m3_fl.align`.
    repair : {"repair-bounded", "repair", "repair-pooled", "recalibrate"}, optional (default: "repair-bounded")
        See `c2m3_fl.repair`; None for no repair. Where clients train on from the result, only the bounded repair keeps
        weights from growing round by round; for a single round ``"repair-pooled"`` is best where labels are skewed.
    moments_from : {"server", "clients"} (default: "server")
        Who measures the activations: the server, on the calibration set, or the clients, on their own examples (see
        `c2m3_fl.federation.client`).
    exchanges : int (default: 1)
        With ``moments_from="clients"``: how many of the last layers to correct, each in an exchange of its own.
    exchange_timeout : float, optional
        Seconds to wait for the clients' answers to an exchange.
    guard : bool (default: True)
        Whether to return the best of the plain and the aligned average, repaired or not, and to skip the matching where
        the identity is proved optimal (see `c2m3_fl.aggregate`).
    robust : {"exclude", "median", "trimmed-mean"}, optional
        Protection against malicious clients: leave out those whose aligned distance to the others is an outlier or that
        contradict them on the calibration set; the latter two besides average entry by entry in the universe (see
        `c2m3_fl.aggregate`). None trusts every client that can be merged.
    group_size : int, optional
        Most clients to align at once, which bounds the matching's memory (see `c2m3_fl.hierarchy`); None for no bound.
    server_momentum : float (default: 0.0)
        Momentum of the server, as FedAvgM's, on top of the merged network (see `c2m3_fl.federation.momentum`). It is for
        clients that train from the broadcast in every round. Where neurons are mapped elsewhere it starts afresh, and the
        guard judges the network without it.
    checkpoint : str or Path, optional
        File in which each whole round is written down; see `resume`.
    device : str or torch.device (default: "auto")
        Where the matching and the repair run: CUDA where present, or any torch device.
    fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes
        As in FedAvg.
    weighted_by_key, arrayrecord_key, configrecord_key, train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As in FedAvg.

    Raises
    ------
    SpecError
        If the spec does not fit the module, or there is neither a spec nor a calibration set to trace the module with.
    RepairError
        If the calibration set is empty or malformed.
    ValueError
        If there is no such matcher, repair or device, or options contradict each other.

    Notes
    -----
    To the aggregated metrics of a round the strategy adds ``c2m3-objective-before`` and ``c2m3-objective`` (Eq. 4, at the
    identity and as found), ``c2m3-moved`` (fraction of neurons mapped elsewhere), ``c2m3-iterations``,
    ``c2m3-matching-seconds``, ``c2m3-repair-seconds``, ``c2m3-guard-seconds``, ``c2m3-chosen`` (the global model's
    position in `c2m3_fl.guard.CANDIDATES`: 0 is FedAvg's average, 3 the repaired average in the universe),
    ``c2m3-score-...`` and ``c2m3-errors-...`` (each candidate's loss and wrong examples, where the guard scored it),
    ``c2m3-clients``, ``c2m3-left-out`` (replies),
    ``c2m3-silent`` (clients that were asked and did not reply) and, where they measure, ``c2m3-measuring-clients``.

    ``train_metrics`` and ``evaluate_metrics`` hold the aggregated metrics by round, those before a resume included.

    The result does not depend on the order of replies. It depends on every client's weights, so it cannot be computed
    under secure aggregation, which hides them.
    """

    def __init__(
        self,
        *,
        module: Architecture,
        calibration: Calibration | None = None,
        spec: PermutationSpec | None = None,
        matcher: str | Matcher = "default",
        repair: Method | None = BOUNDED,
        moments_from: MomentsFrom = "server",
        exchanges: int = 1,
        exchange_timeout: float | None = None,
        guard: bool = True,
        robust: Robust | None = None,
        group_size: int | None = None,
        server_momentum: float = 0.0,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "auto",
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
        )
        _check_options(repair, moments_from, exchanges, robust, group_size)
        self.module = module if isinstance(module, nn.Module) else module()
        self.calibration = None if calibration is None else CalibrationSet.read(calibration, self.module)
        self.spec = spec if spec is not None else trace(self.module, self.calibration)
        self.reference = {name: tensor.detach().cpu() for name, tensor in self.module.state_dict().items()}
        self.spec.check(self.reference)
        self.matcher = resolve_matcher(matcher)
        self.moments_from = moments_from
        self.exchanges = exchanges
        self.exchange_timeout = exchange_timeout
        self.repair: Method | None = repair if self._clients_measure or self.calibration is not None else None
        self.guard = guard
        self.robust = robust
        self.group_size = group_size
        learnt = [name for name, value in self.module.state_dict(keep_vars=True).items() if value.requires_grad]
        self.momentum = ServerMomentum(server_momentum, learnt)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.device = resolve_device(device)
        self._grid: Grid | None = None
        self._broadcast: ArrayRecord | None = None
        self._asked = 0
        self._resumed = False
        self._rounds_before = 0
        self.train_metrics: dict[int, dict[str, object]] = {}
        self.evaluate_metrics: dict[int, dict[str, object]] = {}

    @property
    def _clients_measure(self) -> bool:
        return self.moments_from == "clients"

    def resume(self, initial_arrays: ArrayRecord) -> tuple[ArrayRecord, int]:
        """Go on where the checkpoint ends, or begin.

        Call it once, before `start`, with the arrays of a fresh start. It restores the global random generators of
        Python, NumPy and torch, and numbers the rounds on::

            arrays, done = strategy.resume(initial_arrays)
            result = strategy.start(grid, arrays, num_rounds=10 - done)

        A round counts as done when its evaluation is aggregated. What clients keep is their own affair: the same bits
        come out if they derive what they do from the message, of which ``server-round`` goes on counting.

        Parameters
        ----------
        initial_arrays
            What to begin with if there is no checkpoint.

        Returns
        -------
        arrays : ArrayRecord
            What to start from.
        done : int
            Number of rounds done.

        Raises
        ------
        ValueError
            If the strategy was built without a checkpoint.
        CheckpointError
            If the file is damaged, or another model's.
        """
        if self.checkpoint is None:
            raise ValueError("there is nothing to resume from: build the strategy with checkpoint=FILE")
        self._resumed = True
        if not self.checkpoint.exists():
            return initial_arrays, 0
        saved = Checkpoint.read(self.checkpoint)
        arrays = ArrayRecord({name: Array(array) for name, array in saved.arrays.items()})
        if reason := defect(arrays.to_torch_state_dict(), self.reference):
            raise CheckpointError(f"{self.checkpoint} does not fit the module: {reason}")
        self._rounds_before = saved.round
        self.train_metrics = {number: dict(metrics) for number, metrics in saved.train_metrics.items()}
        self.evaluate_metrics = {number: dict(metrics) for number, metrics in saved.evaluate_metrics.items()}
        self.momentum.velocity = {name: torch.from_numpy(array) for name, array in saved.velocity.items()}
        saved.random_state.restore()
        log(INFO, "Resumed after round %d from %s", saved.round, self.checkpoint)
        return arrays, saved.round

    def initialize_parameters(self, *_: object, **__: object) -> NoReturn:
        """Refuse Flower's legacy workflows, which begin here and are the way to its secure aggregation.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            "C2M3 needs flwr.serverapp.ServerApp with an @app.main() function. Legacy workflows do not run it, and secure "
            "aggregation (SecAgg, SecAgg+) cannot: it hides the single networks, which have to be matched"
        )

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        log(INFO, "\t├──> C2M3 settings:")
        log(INFO, "\t│\t├── Permutation groups: %d (%d neurons)", len(self.spec.groups), sum(self.spec.groups.values()))
        log(INFO, "\t│\t├── Matcher: %s on %s", self.matcher, self.device)
        log(INFO, "\t│\t├── Guard: %s", "on" if self.guard else "off")
        log(INFO, "\t│\t├── Robust: %s", self.robust or "no")
        log(INFO, "\t│\t├── Clients aligned at once: %s", self.group_size or "all")
        log(INFO, "\t│\t├── Server momentum: %s", self.momentum.factor)
        log(INFO, "\t│\t├── Checkpoint: %s", self.checkpoint or "none")
        log(INFO, "\t│\t└── Repair: %s", self._repair_summary())
        super().summary()

    def _repair_summary(self) -> str:
        if self._clients_measure:
            return f"{self.repair or 'none'} (moments from the clients, exchanges: {self.exchanges})"
        if self.calibration is None:
            return "none (no calibration set)"
        return f"{self.repair or 'none'} (calibration inputs: {len(self.calibration)})"

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of federated training."""
        if self.checkpoint is not None and not self._resumed and self.checkpoint.exists():
            raise CheckpointError(
                f"{self.checkpoint} holds an earlier run: call resume() to go on with it, or move it away"
            )
        self._resumed = True
        self._grid, self._broadcast = grid, arrays
        if self._clients_measure and self.repair is not None:
            if _CLIPPING_KEY in config:
                raise ValueError(
                    'moments_from="clients" does not go with client-side clipping: moments would leave the clients without '
                    "noise, and Flower's mods take replies with one ArrayRecord only; repair on the server, or not at all"
                )
            request_moments(config)
        messages = list(super().configure_train(self._rounds_before + server_round, arrays, config, grid))
        self._asked = len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the clients' networks in the universe; keep the global model if there is nothing to merge."""
        server_round += self._rounds_before
        received = list(replies)
        with_content, _ = self._check_and_log_replies(received, is_train=True, validate=False)
        broadcast = None if self._broadcast is None else self._broadcast.to_torch_state_dict()
        usable = read_replies(with_content, self.reference, self.weighted_by_key, broadcast)
        arrays, metrics = self._merge(server_round, usable)
        metrics["c2m3-left-out"] = len(received) - cast(int, metrics["c2m3-clients"])
        metrics["c2m3-silent"] = max(0, self._asked - len(received))
        if metrics["c2m3-silent"]:
            log(WARNING, "aggregate_train: %d of %d clients did not reply", metrics["c2m3-silent"], self._asked)
        self._asked = 0
        self.train_metrics[server_round] = dict(metrics)
        return arrays, metrics

    def _merge(self, server_round: int, usable: Sequence[Reply]) -> tuple[ArrayRecord | None, MetricRecord]:
        if not usable:
            log(WARNING, "aggregate_train: No reply of round %d can be merged; the global model stays", server_round)
            return None, MetricRecord({"c2m3-clients": 0})
        try:
            aggregation = self._aggregate(usable)
        except Exception as error:  # whatever happens here must cost this round only, not the run
            log(
                ERROR,
                "aggregate_train: Round %d is lost, the global model stays: %r",
                server_round,
                error,
                exc_info=True,
            )
            metrics = aggregate_metrics(
                [reply.metrics for reply in usable], self.train_metrics_aggr_fn, self.weighted_by_key
            )
            metrics["c2m3-clients"] = len(usable)
            return None, metrics
        merged = [reply for position, reply in enumerate(usable) if position not in aggregation.excluded]
        for position, reason in aggregation.excluded.items():
            leave_out(usable[position].name, reason)
        metrics = aggregate_metrics(
            [reply.metrics for reply in merged], self.train_metrics_aggr_fn, self.weighted_by_key
        )
        metrics["c2m3-clients"] = len(merged)
        if self._clients_measure and self.repair is not None:
            aggregation = self._repair_by_clients(server_round, aggregation, merged, metrics)
        metrics.update(_diagnostics(aggregation))
        log(INFO, "aggregate_train: Of round %d's candidates, %r is kept", server_round, aggregation.chosen)
        return ArrayRecord(self._moved_on(aggregation)), metrics

    def _moved_on(self, aggregation: Aggregation) -> dict[str, torch.Tensor]:
        """The next global network: the merged one, with the server's momentum."""
        if not self.momentum.factor or self._broadcast is None:
            return aggregation.state_dict
        if aggregation.chosen in ("aligned", "aligned-repaired"):
            self.momentum.restart()
            return aggregation.state_dict
        return self.momentum.step(self._broadcast.to_torch_state_dict(), aggregation.state_dict)

    def _aggregate(self, usable: Sequence[Reply]) -> Aggregation:
        return aggregate(
            self.module,
            [reply.state_dict for reply in usable],
            weights=[reply.weight for reply in usable],
            spec=self.spec,
            matcher=self.matcher,
            calibration=self.calibration,
            repair=None if self._clients_measure else self.repair,
            guard=self.guard,
            robust=self.robust,
            group_size=self.group_size,
            device=self.device,
        )

    def _repair_by_clients(
        self, server_round: int, aggregation: Aggregation, merged: Sequence[Reply], metrics: MetricRecord
    ) -> Aggregation:
        if self._grid is None:
            return aggregation
        started = time.perf_counter()
        repaired = repair_by_clients(
            self.module,
            aggregation.state_dict,
            measured(self.module, merged, aggregation.permutations, self.spec),
            self._grid,
            query=RecordDict({self.configrecord_key: ConfigRecord({"server-round": server_round})}),
            arrayrecord_key=self.arrayrecord_key,
            spread="pooled" if self.repair == "repair-pooled" else "mean",
            bounded=self.repair == BOUNDED,
            exchanges=self.exchanges,
            timeout=self.exchange_timeout,
        )
        metrics["c2m3-measuring-clients"] = repaired.clients
        if repaired.clients == 0:
            return aggregation
        return replace(
            aggregation,
            state_dict=repaired.state_dict,
            chosen=REPAIRED[aggregation.chosen],
            repair_seconds=time.perf_counter() - started,
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of federated evaluation."""
        # What arrives here is the global model as the clients will get it, whatever a wrapper made of ours.
        self._broadcast = arrays
        return super().configure_evaluate(self._rounds_before + server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate the clients' evaluations, and write down the round, which ends here."""
        server_round += self._rounds_before
        metrics = self._evaluation(list(replies))
        if metrics is not None:
            self.evaluate_metrics[server_round] = dict(metrics)
        if self.checkpoint is not None and self._broadcast is not None:
            arrays = {name: array.numpy() for name, array in self._broadcast.items()}
            velocity = {name: tensor.numpy() for name, tensor in self.momentum.velocity.items()}
            Checkpoint(server_round, arrays, self.train_metrics, self.evaluate_metrics, velocity).write(self.checkpoint)
        return metrics

    def _evaluation(self, received: list[Message]) -> MetricRecord | None:
        with_content, _ = self._check_and_log_replies(received, is_train=False, validate=False)
        usable = []
        for message in with_content:
            records = list(message.content.metric_records.items())
            weight = records[0][1].get(self.weighted_by_key) if len(records) == 1 else None
            if is_weight(weight):
                usable.append(records[0])
            else:
                reason = f"{len(records)} MetricRecords, {self.weighted_by_key!r} is {weight!r}"
                log(WARNING, "aggregate_evaluate: Left out node %d: %s", message.metadata.src_node_id, reason)
        if not usable:
            return None
        return aggregate_metrics(usable, self.evaluate_metrics_aggr_fn, self.weighted_by_key)


def aggregate_metrics(
    records: Sequence[tuple[str, MetricRecord]], function: MetricsAggregation, weighted_by_key: str
) -> MetricRecord:
    """A strategy's aggregation of the metrics that all clients sent in one form; a client's own id is none.

    An aggregation that fails costs the metrics, not the round: the log says why.
    """
    common = {
        key
        for key, form in _forms(records[0][1]).items()
        if key != CLIENT_ID_KEY and all(_forms(record).get(key, -1) == form for _, record in records)
    }
    contents = [
        RecordDict({name: MetricRecord({key: value for key, value in record.items() if key in common})})
        for name, record in records
    ]
    try:
        return function(contents, weighted_by_key)
    except Exception:  # a user's function, on what clients sent
        log(ERROR, "The clients' metrics of this round cannot be aggregated", exc_info=True)
        return MetricRecord()


def _forms(record: MetricRecord) -> dict[str, int | None]:
    """Length of each metric that is a list, None for numbers."""
    return {key: len(value) if isinstance(value, list) else None for key, value in record.items()}


def _check_options(
    repair: Method | None, moments_from: MomentsFrom, exchanges: int, robust: Robust | None, group_size: int | None
) -> None:
    if repair not in (None, *get_args(Method)):
        raise ValueError(f"there is no repair {repair!r}; choose one of {', '.join(get_args(Method))} or None")
    if moments_from not in get_args(MomentsFrom):
        raise ValueError(f"moments cannot come from {moments_from!r}; choose one of {', '.join(get_args(MomentsFrom))}")
    if moments_from == "clients" and repair == "recalibrate":
        raise ValueError('repair="recalibrate" needs data on the server; with moments_from="clients" use "repair"')
    if robust not in (None, *get_args(Robust)):
        raise ValueError(f"there is no robust mode {robust!r}; choose one of {', '.join(get_args(Robust))} or None")
    if group_size is not None and group_size < 2:
        raise ValueError(f"group_size is {group_size}; a group has at least 2 clients")
    if exchanges < 1:
        raise ValueError(f"exchanges is {exchanges}; a repair by the clients takes at least 1")


def _diagnostics(aggregation: Aggregation) -> dict[str, float]:
    alignment = aggregation.alignment
    scores = {f"c2m3-score-{name}": loss for name, loss in aggregation.scores.items()}
    errors = {f"c2m3-errors-{name}": count for name, count in aggregation.errors.items()}
    return {
        "c2m3-chosen": CANDIDATES.index(aggregation.chosen),
        "c2m3-objective-before": alignment.objective_before,
        "c2m3-objective": alignment.objective,
        "c2m3-moved": alignment.moved,
        "c2m3-iterations": len(alignment.iterations) - 1,
        "c2m3-matching-seconds": alignment.seconds,
        "c2m3-repair-seconds": aggregation.repair_seconds,
        "c2m3-guard-seconds": aggregation.guard_seconds,
        **scores,
        **errors,
    }
