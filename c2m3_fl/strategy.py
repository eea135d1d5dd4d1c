"""The Flower strategy: FedAvg whose average is taken in the universe. Adapts Flower to `c2m3_fl.aggregation`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from logging import ERROR, INFO, WARNING
from typing import get_args

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from c2m3_fl.aggregation import Aggregation, aggregate, trace
from c2m3_fl.device import resolve_device
from c2m3_fl.matching import Matcher, resolve_matcher
from c2m3_fl.repair.calibration import Calibration, read_batches
from c2m3_fl.repair.network import Architecture
from c2m3_fl.repair.sequential import Method
from c2m3_fl.symmetry import PermutationSpec
from c2m3_fl.validation import canonical_order, defect

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]

CLIENT_ID_KEY = "client-id"
"""Metric by which a client may name itself; it is used in the log and never averaged."""


@dataclass(frozen=True)
class _Reply:
    """A reply that can be merged."""

    name: str
    content: RecordDict
    state_dict: dict[str, Tensor]
    weight: float


class C2M3(FedAvg):
    """Cycle-consistent multi-model merging (C2M3, NeurIPS 2024).

    Each round the clients' networks are mapped into one universe by permutations of their neurons, found jointly for all
    of them; averaged there, weighted by their numbers of examples; and repaired: the average's activations get the
    clients' means and standard deviations on a calibration set. The global model keeps the clients' architecture.

    A reply that cannot be merged (an error, NaN, other keys, shapes or dtypes, an unusable weight) is left out of the round
    and named in the log. If nothing is left, the global model stays as it was.

    Parameters
    ----------
    module : nn.Module or callable
        The clients' architecture, or a function without arguments that builds it. It is not changed.
    calibration : Tensor or iterable, optional
        Inputs on the server for the repair: a tensor, or an iterable of batches (inputs, or tuples that begin with them).
        Read once, here. Without it there is no repair, and `spec` must be given.
    spec : PermutationSpec, optional
        The permutation groups. By default they are traced, here and once, with the first calibration inputs.
    matcher : str or Matcher (default: "default")
        See `c2m3_fl.align`.
    repair : {"repair", "recalibrate"}, optional (default: "repair")
        See `c2m3_fl.repair`; None for no repair.
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
        If there is no such matcher, repair or device.

    Notes
    -----
    To the aggregated metrics of a round the strategy adds ``c2m3-objective-before`` and ``c2m3-objective`` (Eq. 4, at the
    identity and as found), ``c2m3-moved`` (fraction of neurons mapped elsewhere), ``c2m3-iterations``,
    ``c2m3-matching-seconds``, ``c2m3-repair-seconds``, ``c2m3-clients`` and ``c2m3-left-out``.

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
        repair: Method | None = "repair",
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
        if repair not in (None, *get_args(Method)):
            raise ValueError(f"there is no repair {repair!r}; choose one of {', '.join(get_args(Method))} or None")
        self.module = module if isinstance(module, nn.Module) else module()
        self.calibration = None if calibration is None else read_batches(calibration)
        self.spec = spec if spec is not None else trace(self.module, self.calibration)
        self.reference = {name: tensor.detach().cpu() for name, tensor in self.module.state_dict().items()}
        self.spec.check(self.reference)
        self.matcher = resolve_matcher(matcher)
        self.repair: Method | None = repair if self.calibration is not None else None
        self.device = resolve_device(device)

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        log(INFO, "\t├──> C2M3 settings:")
        log(INFO, "\t│\t├── Permutation groups: %d (%d neurons)", len(self.spec.groups), sum(self.spec.groups.values()))
        log(INFO, "\t│\t├── Matcher: %s on %s", self.matcher, self.device)
        log(INFO, "\t│\t└── Repair: %s", self._repair_summary())
        super().summary()

    def _repair_summary(self) -> str:
        if self.calibration is None:
            return "none (no calibration set)"
        inputs = sum(len(batch) for batch in self.calibration)
        return f"{self.repair or 'none'} (calibration inputs: {inputs})"

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the clients' networks in the universe; keep the global model if there is nothing to merge."""
        received = list(replies)
        with_content, _ = self._check_and_log_replies(received, is_train=True, validate=False)
        usable = self._in_canonical_order(self._usable(with_content))
        left_out = len(received) - len(usable)
        if not usable:
            log(WARNING, "aggregate_train: No reply of round %d can be merged; the global model stays", server_round)
            return None, MetricRecord({"c2m3-clients": 0, "c2m3-left-out": left_out})
        metrics = self._aggregate_metrics(usable)
        metrics["c2m3-clients"], metrics["c2m3-left-out"] = len(usable), left_out
        aggregation = self._merge(server_round, usable)
        if aggregation is None:
            return None, metrics
        metrics.update(_diagnostics(aggregation))
        return ArrayRecord(aggregation.state_dict), metrics

    def _merge(self, server_round: int, usable: Sequence[_Reply]) -> Aggregation | None:
        try:
            return aggregate(
                self.module,
                [reply.state_dict for reply in usable],
                weights=[reply.weight for reply in usable],
                spec=self.spec,
                matcher=self.matcher,
                calibration=self.calibration,
                repair=self.repair,
                device=self.device,
            )
        except Exception as error:  # whatever happens here must cost this round only, not the run
            log(
                ERROR,
                "aggregate_train: Round %d is lost, the global model stays: %r",
                server_round,
                error,
                exc_info=True,
            )
            return None

    def _usable(self, replies: Sequence[Message]) -> list[_Reply]:
        usable: list[_Reply] = []
        for message in replies:
            name = f"node {message.metadata.src_node_id}"
            try:
                usable.append(self._read(name, message.content))
            except _UnusableReplyError as reason:
                log(WARNING, "aggregate_train: Left out %s: %s", reason.name, reason)
        return usable

    def _read(self, name: str, content: RecordDict) -> _Reply:
        metric_records = list(content.metric_records.values())
        if len(metric_records) != 1:
            raise _UnusableReplyError(name, f"the reply has {len(metric_records)} MetricRecords instead of one")
        metrics = metric_records[0]
        if CLIENT_ID_KEY in metrics:
            name = f"client {metrics[CLIENT_ID_KEY]} ({name})"
        weight = metrics.get(self.weighted_by_key)
        if not isinstance(weight, int | float):
            raise _UnusableReplyError(name, f"its metric {self.weighted_by_key!r} is {weight!r}, not a number")
        if not math.isfinite(weight) or weight <= 0:
            raise _UnusableReplyError(name, f"its weight {self.weighted_by_key!r} is {weight}; it must be positive")
        array_records = list(content.array_records.values())
        if len(array_records) != 1:
            raise _UnusableReplyError(name, f"the reply has {len(array_records)} ArrayRecords instead of one")
        try:
            state_dict = dict(array_records[0].to_torch_state_dict())
        except (TypeError, ValueError) as error:
            raise _UnusableReplyError(name, f"its arrays cannot be read: {error}") from error
        if reason := defect(state_dict, self.reference):
            raise _UnusableReplyError(name, reason)
        return _Reply(name, content, {key: state_dict[key] for key in self.reference}, float(weight))

    @staticmethod
    def _in_canonical_order(replies: list[_Reply]) -> list[_Reply]:
        order = canonical_order([reply.state_dict for reply in replies], [reply.weight for reply in replies])
        return [replies[position] for position in order]

    def _aggregate_metrics(self, replies: Sequence[_Reply]) -> MetricRecord:
        """FedAvg's aggregation of the metrics that all clients sent; the client's own id is none."""
        sent = [next(iter(reply.content.metric_records.items())) for reply in replies]
        common = set.intersection(*(set(record) for _, record in sent)) - {CLIENT_ID_KEY}
        contents = [
            RecordDict({name: MetricRecord({key: value for key, value in record.items() if key in common})})
            for name, record in sent
        ]
        return self.train_metrics_aggr_fn(contents, self.weighted_by_key)


class _UnusableReplyError(Exception):
    """A reply that is left out of the round, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def _diagnostics(aggregation: Aggregation) -> dict[str, float]:
    alignment = aggregation.alignment
    return {
        "c2m3-objective-before": alignment.objective_before,
        "c2m3-objective": alignment.objective,
        "c2m3-moved": alignment.moved,
        "c2m3-iterations": len(alignment.iterations) - 1,
        "c2m3-matching-seconds": alignment.seconds,
        "c2m3-repair-seconds": aggregation.repair_seconds,
    }
