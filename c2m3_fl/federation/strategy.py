"""The Flower strategy: FedAvg whose average is taken in the universe. Adapts Flower to `c2m3_fl.merger`."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg, Result

from c2m3_fl.activations import RepairError
from c2m3_fl.activations.calibration import Calibration
from c2m3_fl.activations.network import Architecture
from c2m3_fl.errors import ClientError, OptionError
from c2m3_fl.federation import private
from c2m3_fl.federation.checkpoint import Checkpoint, CheckpointError
from c2m3_fl.federation.client import request_moments
from c2m3_fl.federation.exchange import measured, repair_by_clients
from c2m3_fl.federation.journal import Journal, described
from c2m3_fl.federation.metrics import MetricsAggregation, diagnostics, summarised
from c2m3_fl.federation.momentum import ServerMomentum
from c2m3_fl.federation.replies import Replies, Reply, ReplyReader, content_order, is_weight, leave_out
from c2m3_fl.federation.wire import Wire
from c2m3_fl.layout import StateDict, examine
from c2m3_fl.matching import Matcher
from c2m3_fl.merger import Merger
from c2m3_fl.options import DEFAULTS, MergeOptions, Repair
from c2m3_fl.predictions import Predictions, TaskName
from c2m3_fl.repair.methods import BOUNDED
from c2m3_fl.robust import Robust
from c2m3_fl.session import REPAIRED, Aggregation
from c2m3_fl.symmetry import PermutationSpec, SpecError, moved_share, shortcomings

MomentsFrom = Literal["server", "clients"]


class C2M3(FedAvg):
    """Cycle-consistent multi-model merging (C2M3, NeurIPS 2024).

    Each round the clients' networks are mapped into one universe by permutations of their neurons, found jointly for all
    of them; averaged there, weighted by their numbers of examples; and repaired on the server's calibration inputs. The
    global model keeps the clients' architecture.

    What is broadcast first decides what is federated: all of the module's tensors or some, under names with the prefixes of
    compiled or parallel modules, or as a list of arrays; in any dtype. A reply that cannot be merged (an error, NaN, other
    tensors, an unusable weight, an update of absurd size) is left out of the round and named in the log. A fault that all
    replies share, or one of the module or the calibration set, ends the run.

    Parameters
    ----------
    fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes
        As in FedAvg.
    weighted_by_key, arrayrecord_key, configrecord_key, train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As in FedAvg. Functions of one's own get the whole replies of the clients that were merged.
    module : nn.Module or callable
        The clients' architecture, or a function without arguments that builds it. It is not changed. Tensors that are not
        federated are taken from it.
    calibration : Tensor or iterable, optional
        Inputs on the server for alignment, repair and guard, with targets if they are known, in any form in which data
        sets come (see `c2m3_fl.activations.calibration.CalibrationSet.read`). Read once, here. Without it there is no
        repair unless the clients measure, and `spec` must be given.
    spec : PermutationSpec, optional
        The permutation groups. By default they are traced, here and once, with the first calibration inputs.
    matcher, repair, activations, guard, robust, group_size, predictions, task, device
        See `c2m3_fl.options.MergeOptions`. ``repair="auto"`` is ``"least-squares-bounded"``, since clients train on from the
        result: an unbounded repair lets weights grow round by round.
    moments_from : {"server", "clients"} (default: "server")
        Who measures the activations: the server, on the calibration set, or the clients, on their own examples (see
        `c2m3_fl.federation.client`); these can only be repaired by REPAIR.
    exchanges : int (default: 1)
        With ``moments_from="clients"``: how many of the last layers to correct, each in an exchange of its own.
    exchange_timeout : float, optional
        Seconds to wait for the clients' answers to an exchange.
    server_momentum : float (default: 0.0)
        Momentum of the server, as FedAvgM's, on top of the merged network (see `c2m3_fl.federation.momentum`). It is for
        clients that train from the broadcast in every round. Where neurons are mapped elsewhere it starts afresh, and the
        guard judges the network without it.
    checkpoint : str or Path, optional
        File in which each whole round is written down, in safetensors; see `resume`. It is tried out here.
    keep_best : str, optional
        Name of an aggregated metric of the clients' evaluation (or training) by which the best round's network is kept
        besides the last, in a file ``NAME.best.safetensors`` beside it: the largest; with a minus before it, such as
        ``"-loss"``, the smallest.
    max_lost_rounds : int (default: 3)
        So many rounds in a row that give no global model end the run.

    Raises
    ------
    SpecError
        If the module cannot be traced, the spec does not fit it, or there is neither a spec nor a calibration set.
    RepairError
        If the calibration set is empty or malformed, or the module cannot be run, judged or repaired on it: the constructor
        merges the module's own network once.
    OptionError
        If there is no such option, or options contradict each other or the module.

    Notes
    -----
    To the aggregated metrics of a round the strategy adds ``c2m3-objective-before`` and ``c2m3-objective`` (Eq. 4, at the
    identity and as found), ``c2m3-moved`` (fraction of neurons mapped elsewhere), ``c2m3-iterations``,
    ``c2m3-...-seconds`` by step (`c2m3_fl.session.STEPS`), ``c2m3-chosen`` (the global model's position in
    `c2m3_fl.guard.CANDIDATES`: 0 is FedAvg's average, 3 the repaired average in the universe), ``c2m3-score-...`` and
    ``c2m3-errors-...`` (each candidate's loss and wrong examples, where the guard scored it), ``c2m3-clients``,
    ``c2m3-left-out`` (replies), ``c2m3-silent`` (clients that were asked and whose reply did not come), ``c2m3-lost``
    (rounds without a model, in a row) and, where they measure, ``c2m3-measuring-clients``.

    ``train_metrics`` and ``evaluate_metrics`` hold the aggregated metrics by round, those before a resume included.

    The result does not depend on the order of replies. It depends on every client's weights, so it cannot be computed
    under secure aggregation, which hides them.
    """

    def __init__(  # noqa: PLR0917  # FedAvg's options, in FedAvg's order
        self,
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
        *,
        module: Architecture,
        calibration: Calibration | None = None,
        spec: PermutationSpec | None = None,
        matcher: str | Matcher = DEFAULTS.matcher,
        repair: Repair | None = DEFAULTS.repair,
        activations: float = DEFAULTS.activations,
        guard: bool = DEFAULTS.guard,
        robust: Robust | None = DEFAULTS.robust,
        group_size: int | None = DEFAULTS.group_size,
        predictions: Predictions | None = DEFAULTS.predictions,
        task: TaskName | None = DEFAULTS.task,
        device: str | torch.device = DEFAULTS.device,
        moments_from: MomentsFrom = "server",
        exchanges: int = 1,
        exchange_timeout: float | None = None,
        server_momentum: float = 0.0,
        checkpoint: str | Path | None = None,
        keep_best: str | None = None,
        max_lost_rounds: int = 3,
    ) -> None:
        super().__init__(
            fraction_train,
            fraction_evaluate,
            min_train_nodes,
            min_evaluate_nodes,
            min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
        )
        self._summarises = train_metrics_aggr_fn is not None, evaluate_metrics_aggr_fn is not None
        self.options = MergeOptions(
            matcher=matcher,
            repair=repair,
            activations=activations,
            guard=guard,
            robust=robust,
            group_size=group_size,
            predictions=predictions,
            task=task,
            device=device,
        )
        _check_exchange(self.options, moments_from, exchanges)
        if max_lost_rounds < 1:
            raise OptionError(f"max_lost_rounds is {max_lost_rounds}; a run ends after at least 1 lost round")
        self.moments_from = moments_from
        self.exchanges = exchanges
        self.exchange_timeout = exchange_timeout
        self.max_lost_rounds = max_lost_rounds
        self.merger = Merger.prepare(module, spec, calibration, self._server_options(), trained_on=True)
        self.merger.rehearse()
        for sentence in shortcomings(self.merger.spec):
            log(WARNING, "C2M3: %s", sentence)
        self._module_layout = self.merger.layout
        state = self.merger.module.state_dict(keep_vars=True)
        self._wire = Wire({name: name for name in state})
        self._parameters = frozenset(name for name, value in state.items() if isinstance(value, torch.nn.Parameter))
        self.momentum = ServerMomentum(server_momentum, [name for name, value in state.items() if value.requires_grad])
        self._journal = None if checkpoint is None else self._opened(Path(checkpoint), keep_best)
        if keep_best is not None and checkpoint is None:
            raise OptionError("keep_best needs checkpoint=FILE, beside which the best round is kept")
        self._grid: Grid | None = None
        self._broadcast: ArrayRecord | None = None
        self._asked = 0
        self._lost: list[str] = []
        self._resumed = False
        self._rounds_before = 0
        self.train_metrics: dict[int, dict[str, object]] = {}
        self.evaluate_metrics: dict[int, dict[str, object]] = {}

    def _server_options(self) -> MergeOptions:
        """How the server merges: without repair, if the clients measure for it."""
        return replace(self.options, repair=None) if self._clients_measure else self.options

    @property
    def spec(self) -> PermutationSpec:
        """The permutation groups of what is federated."""
        return self.merger.spec

    @property
    def _clients_measure(self) -> bool:
        return self.moments_from == "clients"

    @property
    def checkpoint(self) -> Path | None:
        """The file in which rounds are written down."""
        return None if self._journal is None else self._journal.path

    def _opened(self, path: Path, keep_best: str | None) -> Journal:
        state = self.merger.module.state_dict()
        more = {"moments_from": self.moments_from, "exchanges": self.exchanges, "server_momentum": self.momentum.factor}
        journal = Journal(path, described(self.options, self.merger.module, **more), keep_best)
        journal.try_out(sum(tensor.nbytes for tensor in state.values()))
        return journal

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """As FedAvg's; where no round is left to do, or all were lost, the result's arrays are those it was given."""
        try:
            result = super().start(*args, **kwargs)
        finally:
            if self._journal is not None:
                self._journal.release()
        if not result.arrays:
            result.arrays = kwargs["initial_arrays"] if "initial_arrays" in kwargs else args[1]
        return result

    def resume(self, initial_arrays: ArrayRecord, *, accept_changes: bool = False) -> tuple[ArrayRecord, int]:
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
        accept_changes
            Whether to go on although the checkpoint's run had other options.

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
            If the file is damaged, another model's, of a run with other options, or held by a run that is going on.
        """
        if self._journal is None:
            raise ValueError("there is nothing to resume from: build the strategy with checkpoint=FILE")
        self._resumed = True
        self._journal.hold()
        if not self._journal.path.exists():
            return initial_arrays, 0
        saved = self._journal.read(accept_changes=accept_changes)
        arrays = ArrayRecord({name: Array(array) for name, array in saved.arrays.items()})
        try:
            self._adopt(arrays)
        except (OptionError, ClientError, SpecError) as error:
            raise CheckpointError(f"{self.checkpoint} does not fit the module: {error}") from error
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
        options, spec = self.options, self.merger.spec
        log(INFO, "\t├──> C2M3 settings:")
        log(INFO, "\t│\t├── Permutation groups: %d (%d neurons)", len(spec.groups), sum(spec.groups.values()))
        log(INFO, "\t│\t├── Parameters that they move: %.1f %%", 100 * moved_share(spec))
        log(INFO, "\t│\t├── Matcher: %s on %s", options.matcher, options.device)
        log(INFO, "\t│\t├── Guard: %s", "on" if options.guard else "off")
        log(INFO, "\t│\t├── Robust: %s", options.robust or "no")
        log(INFO, "\t│\t├── Clients aligned at once: %s", options.group_size or "all")
        log(INFO, "\t│\t├── Server momentum: %s", self.momentum.factor)
        log(INFO, "\t│\t├── Checkpoint: %s", self.checkpoint or "none")
        log(INFO, "\t│\t└── Repair: %s", self._repair_summary())
        super().summary()

    def _repair_summary(self) -> str:
        repair = self.options.repair or "none"
        if self._clients_measure:
            return f"{repair} (moments from the clients, exchanges: {self.exchanges})"
        if self.merger.data is None:
            return "none (no calibration set)"
        return f"{repair} (calibration inputs: {len(self.merger.data)})"

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of federated training.

        Raises
        ------
        OptionError
            If the arrays are not the module's.
        CheckpointError
            If the checkpoint holds an earlier run that was not resumed.
        """
        if self._journal is not None:
            self._journal.hold()
            if not self._resumed and self._journal.path.exists():
                raise CheckpointError(
                    f"{self.checkpoint} holds an earlier run: call resume() to go on with it, or move it away"
                )
        self._resumed = True
        self._adopt(arrays)
        self._grid, self._broadcast = grid, arrays
        if self._clients_measure and self.options.repair is not None:
            if private.CLIPPING_KEY in config:
                raise OptionError(
                    'moments_from="clients" does not go with client-side clipping: moments would leave the clients without '
                    "noise, and Flower's mods take replies with one ArrayRecord only; repair on the server, or not at all"
                )
            request_moments(config)
        messages = list(super().configure_train(self._rounds_before + server_round, arrays, config, grid))
        self._asked = len(messages)
        return messages

    def _adopt(self, arrays: ArrayRecord) -> None:
        """Learn from what is broadcast which tensors are federated, how they are called and of which dtype they are."""
        module = self.merger.module
        wire = Wire.of(arrays, module.state_dict(), dict(module.named_parameters()))
        state_dict = wire.read(arrays)
        layout = {name: self._module_layout[name].of_dtype(tensor.dtype) for name, tensor in state_dict.items()}
        try:
            examine(state_dict, layout)
        except ClientError as error:
            raise OptionError(f"the arrays to broadcast cannot be trained from: {error}") from error
        if wire == self._wire and layout == self.merger.layout:
            return
        before = self.merger
        self.merger = replace(before.restricted_to(layout), layout=layout)
        self._wire = wire
        if kept := [name for name in before.layout if name not in layout]:
            log(INFO, "C2M3: %d tensors are not federated and stay the module's, %r first", len(kept), kept[0])
            for sentence in shortcomings(self.merger.spec):
                log(WARNING, "C2M3: %s", sentence)
        self.merger.rehearse()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the clients' networks in the universe; keep the global model if there is nothing to merge.

        Raises
        ------
        InconsistentMessageReplies
            If several clients replied, and none of them with what the model holds, for one and the same reason.
        AggregationError
            If `max_lost_rounds` rounds in a row were lost.
        SpecError, RepairError, OptionError
            If the merge fails for a reason of the module, the calibration set or the options.
        """
        server_round += self._rounds_before
        received = list(replies)
        if not received and not self._asked:
            return None, None
        with_content = private.with_content(self, received, is_train=True)
        broadcast = None if self._broadcast is None else self._wire.read(self._broadcast)
        reader = ReplyReader(self._wire, self.merger.layout, self.weighted_by_key, broadcast, self._parameters)
        read = reader.read(with_content)
        if read.common_fault is not None:
            raise InconsistentMessageReplies(
                f"no reply of round {server_round} holds what the model holds: {read.common_fault}. What is broadcast first "
                "(initial_arrays) decides what clients send back"
            )
        arrays, metrics = self._merge(server_round, read)
        metrics["c2m3-left-out"] = len(received) - int(str(metrics["c2m3-clients"]))
        metrics["c2m3-silent"] = max(0, self._asked - len(received))
        metrics["c2m3-lost"] = len(self._lost)
        if metrics["c2m3-silent"]:
            log(WARNING, "aggregate_train: %d of %d replies are not here", metrics["c2m3-silent"], self._asked)
        self._asked = 0
        self.train_metrics[server_round] = dict(metrics)
        if len(self._lost) >= self.max_lost_rounds:
            raise AggregationError(
                f"{len(self._lost)} rounds in a row gave no global model; the last one because {self._lost[-1]}"
            )
        return arrays, metrics

    def _merge(self, server_round: int, read: Replies) -> tuple[ArrayRecord | None, MetricRecord]:
        if read.clients is None:
            return None, self._without_model(server_round, [], "no reply can be merged")
        try:
            aggregation = self.merger.merge(read.clients)
        except (SpecError, RepairError, OptionError):  # mistakes of the set-up are in every round
            raise
        except ClientError as error:
            return None, self._without_model(server_round, read.usable, str(error))
        except Exception as error:  # whatever else happens here must cost this round only
            log(ERROR, "aggregate_train: Round %d fails", server_round, exc_info=True)
            return None, self._without_model(server_round, read.usable, repr(error))
        self._lost = []
        merged = [read.usable[position] for position in aggregation.merged]
        for position, reason in aggregation.excluded.items():
            leave_out(read.usable[position].name, reason)
        metrics = self._train_metrics(merged)
        if self._clients_measure and self.options.repair is not None:
            aggregation = self._repair_by_clients(server_round, aggregation, merged, metrics)
        metrics.update(diagnostics(aggregation))
        log(INFO, "aggregate_train: Of round %d's candidates, %r is kept", server_round, aggregation.chosen)
        return self._wire.write(self._moved_on(aggregation)), metrics

    def _without_model(self, server_round: int, usable: Sequence[Reply], reason: str) -> MetricRecord:
        """Count a lost round; its metrics."""
        self._lost.append(reason)
        log(WARNING, "aggregate_train: Round %d is lost, the global model stays: %s", server_round, reason)
        return self._train_metrics(usable)

    def _train_metrics(self, replies: Sequence[Reply]) -> MetricRecord:
        metrics = MetricRecord()
        if replies:
            metrics = self._summary(
                [reply.content for reply in replies], self.train_metrics_aggr_fn, self._summarises[0]
            )
        metrics["c2m3-clients"] = len(replies)
        return metrics

    def _summary(self, contents: list[RecordDict], aggregate: MetricsAggregation, is_own: bool) -> MetricRecord:
        """The clients' metrics put together; a function of the user's own gets the whole replies."""
        key = self.weighted_by_key
        return aggregate(contents, key) if is_own else summarised(contents, key, aggregate)

    def _moved_on(self, aggregation: Aggregation) -> StateDict:
        """The next global network: the merged one, with the server's momentum."""
        if not self.momentum.factor or self._broadcast is None:
            return aggregation.state_dict
        if aggregation.chosen in ("aligned", "aligned-repaired"):
            self.momentum.restart()
            return aggregation.state_dict
        return self.momentum.step(self._wire.read(self._broadcast), aggregation.state_dict)

    def _repair_by_clients(
        self, server_round: int, aggregation: Aggregation, merged: Sequence[Reply], metrics: MetricRecord
    ) -> Aggregation:
        if self._grid is None:
            return aggregation
        started = time.perf_counter()
        maps = aggregation.permutations
        repaired = repair_by_clients(
            self.merger.module,
            aggregation.state_dict,
            measured(self.merger.module, merged, [maps[each] for each in aggregation.merged], self.merger.spec),
            self._grid,
            query=RecordDict({self.configrecord_key: ConfigRecord({"server-round": server_round})}),
            arrayrecord_key=self.arrayrecord_key,
            spread="pooled" if self.options.repair == "repair-pooled" else "mean",
            bounded=self.options.repair in (BOUNDED, "auto"),
            robust=self.options.robust is not None,
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
            seconds={**aggregation.seconds, "repair": time.perf_counter() - started},
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
        if self._journal is not None and self._broadcast is not None:
            arrays = {name: array.numpy() for name, array in self._broadcast.items()}
            velocity = {name: tensor.numpy() for name, tensor in self.momentum.velocity.items()}
            self._journal.write(Checkpoint(server_round, arrays, self.train_metrics, self.evaluate_metrics, velocity))
        return metrics

    def _evaluation(self, received: list[Message]) -> MetricRecord | None:
        usable: dict[int, RecordDict] = {}
        # In an order that depends on the content alone: of several answers the same one counts, however they came.
        for message in sorted(private.with_content(self, received, is_train=False), key=content_order):
            node = message.metadata.src_node_id
            records = list(message.content.metric_records.values())
            weight = records[0].get(self.weighted_by_key) if len(records) == 1 else None
            if not is_weight(weight):
                reason = f"{len(records)} MetricRecords, {self.weighted_by_key!r} is {reprlib.repr(weight)}"
                log(WARNING, "aggregate_evaluate: Left out node %d: %s", node, reason)
            elif usable.setdefault(node, message.content) is not message.content:
                log(
                    WARNING, "aggregate_evaluate: Left out node %d: it answered more than once; one answer counts", node
                )
        if not usable:
            return None
        return self._summary(list(usable.values()), self.evaluate_metrics_aggr_fn, self._summarises[1])


def _check_exchange(options: MergeOptions, moments_from: MomentsFrom, exchanges: int) -> None:
    if moments_from not in get_args(MomentsFrom):
        choices = ", ".join(get_args(MomentsFrom))
        raise OptionError(f"moments cannot come from {moments_from!r}; choose one of {choices}")
    if moments_from == "clients" and options.repair in ("recalibrate", "least-squares", "least-squares-bounded"):
        raise OptionError(
            f'repair="{options.repair}" needs data on the server; with moments_from="clients" use "auto", "repair-bounded", '
            '"repair" or "repair-pooled"'
        )
    if exchanges < 1:
        raise OptionError(f"exchanges is {exchanges}; a repair by the clients takes at least 1")
