"""Reading the clients' replies to a round of training: which can be merged, and why the others cannot."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from logging import WARNING
from typing import TypeGuard

from flwr.app import Message, MetricRecord, RecordDict
from flwr.common import log

from c2m3_fl.activations import Moments, from_arrays
from c2m3_fl.errors import ClientError, StructureError
from c2m3_fl.federation.client import MOMENTS_KEY
from c2m3_fl.federation.wire import Wire
from c2m3_fl.layout import Client, Layout, StateDict, examine
from c2m3_fl.plausibility import implausible
from c2m3_fl.round import Clients

CLIENT_ID_KEY = "client-id"
"""Metric by which a client may name itself; it is used in the log and never averaged."""

MOST_WORDS = 400
"""So many characters of a client's words are logged."""


@dataclass(frozen=True)
class Reply:
    """A reply that can be merged.

    Attributes
    ----------
    node
        Where it came from.
    name
        The sender, for the log.
    content
        All that it sent.
    client
        Its network, examined.
    weight
        Its share in the average, for example its number of examples.
    moments
        The moments of its network's activations, if it sent usable ones.
    """

    node: int
    name: str
    content: RecordDict
    client: Client
    weight: float
    moments: dict[str, Moments] | None = None

    @property
    def metrics(self) -> tuple[str, MetricRecord]:
        """What the client measured, under its record's name."""
        (record,) = self.content.metric_records.items()
        return record


@dataclass(frozen=True)
class Replies:
    """A round's replies: those that can be merged, in the order of `clients`, and why others cannot."""

    usable: Sequence[Reply]
    clients: Clients | None
    common_fault: str | None = None


class UnusableReplyError(Exception):
    """A reply that is left out of the round, and why.

    Attributes
    ----------
    name
        The sender, for the log.
    structural
        Whether the reply is of another form than the model's: then all clients' may be, and the set-up is wrong.
    """

    def __init__(self, name: str, reason: str, *, structural: bool = False) -> None:
        super().__init__(reason)
        self.name = name
        self.structural = structural


@dataclass(frozen=True)
class ReplyReader:
    """Reads the replies to one broadcast.

    Attributes
    ----------
    wire
        How tensors are named.
    layout
        What a client's tensors must be.
    weighted_by_key
        The metric that weighs the clients.
    broadcast
        The network that the clients set out from, if it is known.
    parameters
        Names of the tensors that training moves; None if that is not known.
    """

    wire: Wire
    layout: Layout
    weighted_by_key: str
    broadcast: StateDict | None = None
    parameters: Collection[str] | None = None

    def read(self, messages: Sequence[Message]) -> Replies:
        """Read what can be merged, in an order that depends on the content alone; the log names the rest."""
        found: list[Reply] = []
        faults: Counter[str] = Counter()
        for message in messages:
            try:
                found.append(self._read(message))
            except UnusableReplyError as reason:
                leave_out(reason.name, str(reason))
                faults[str(reason)] += reason.structural
        if not found:
            shared = next((fault for fault, count in faults.items() if count == len(messages) > 1), None)
            return Replies([], None, shared)
        return self._settled(found)

    def _settled(self, found: Sequence[Reply]) -> Replies:
        """Those of the replies that count, in order."""
        ordered = self._ordered(found)
        kept: dict[int, Reply] = {}
        for reply in (found[position] for position in ordered.positions):
            if reply.node in kept:
                leave_out(reply.name, "it answered more than once; one answer counts")
            else:
                kept[reply.node] = reply
        reasons = implausible([reply.client.state_dict for reply in kept.values()], self.broadcast, self.parameters)
        usable = []
        for reply, reason in zip(kept.values(), reasons, strict=True):
            if reason:
                leave_out(reply.name, reason)
            else:
                usable.append(reply)
        if not usable:
            return Replies([], None)
        return Replies(usable, self._ordered(usable))

    def _ordered(self, replies: Sequence[Reply]) -> Clients:
        return Clients.ordered(
            [reply.client.state_dict for reply in replies],
            [reply.weight for reply in replies],
            [reply.client.sums for reply in replies],
            self.layout,
        )

    def _read(self, message: Message) -> Reply:
        content = message.content
        name = f"node {message.metadata.src_node_id}"
        metric_records = list(content.metric_records.values())
        if len(metric_records) != 1:
            reason = f"the reply has {len(metric_records)} MetricRecords instead of one"
            raise UnusableReplyError(name, reason, structural=True)
        metrics = metric_records[0]
        if CLIENT_ID_KEY in metrics:
            name = f"client {reprlib.repr(metrics[CLIENT_ID_KEY])} ({name})"
        weight = metrics.get(self.weighted_by_key)
        if weight is None:
            known = ", ".join(repr(key) for key in islice(metrics, 20)) or "nothing"
            reason = (
                f"it sends no metric {self.weighted_by_key!r}, by which clients are weighted, but {known}; name another key "
                "by weighted_by_key"
            )
            raise UnusableReplyError(name, reason, structural=True)
        if not is_weight(weight):
            reason = f"its metric {self.weighted_by_key!r} is {reprlib.repr(weight)}, not a positive number"
            raise UnusableReplyError(name, reason)
        array_records = [record for key, record in content.array_records.items() if key != MOMENTS_KEY]
        if len(array_records) != 1:
            reason = f"the reply has {len(array_records)} ArrayRecords instead of one"
            raise UnusableReplyError(name, reason, structural=True)
        try:
            state_dict = self.wire.read(array_records[0])
        except Exception as error:  # the bytes may be anything, and so may be what decoding them raises
            raise UnusableReplyError(name, f"its arrays cannot be read: {error}") from error
        try:
            client = examine(state_dict, self.layout)
        except ClientError as error:
            raise UnusableReplyError(name, str(error), structural=isinstance(error, StructureError)) from error
        return Reply(
            node=message.metadata.src_node_id,
            name=name,
            content=content,
            client=client,
            weight=float(weight),
            moments=read_moments(name, content),
        )


def content_order(message: Message) -> tuple[int, str]:
    """A key that sorts answers to an evaluation by node and by what they say."""
    return message.metadata.src_node_id, repr(
        [list(record.items()) for record in message.content.metric_records.values()]
    )


def is_weight(value: object) -> TypeGuard[float]:
    """Whether a client can count with this weight."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def leave_out(name: str, reason: str) -> None:
    """Say in the log who is left out, and why; a client's own words are kept short."""
    log(WARNING, "aggregate_train: Left out %s: %s", shortened(name), shortened(reason))


def shortened(words: object) -> str:
    """What a client says, short enough for a log."""
    text = str(words)
    return text if len(text) <= MOST_WORDS else f"{text[:MOST_WORDS]}..."


def read_moments(name: str, content: RecordDict) -> dict[str, Moments] | None:
    """Moments of a reply, or None where there are none; the log says what is wrong with unusable ones."""
    record = content.array_records.get(MOMENTS_KEY)
    if record is None:
        return None
    try:
        return from_arrays({key: array.numpy() for key, array in record.items()})
    except Exception as error:  # as above
        log(WARNING, "aggregate_train: The moments of %s cannot be used: %s", name, error)
        return None
