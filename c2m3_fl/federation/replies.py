"""Reading the clients' replies to a round of training: which can be merged, and why the others cannot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import WARNING
from typing import TypeGuard

from flwr.app import Message, MetricRecord, RecordDict
from flwr.common import log
from torch import Tensor

from c2m3_fl.activations import Moments, from_arrays
from c2m3_fl.federation.client import MOMENTS_KEY
from c2m3_fl.validation import canonical_order, defect, implausible

CLIENT_ID_KEY = "client-id"
"""Metric by which a client may name itself; it is used in the log and never averaged."""


@dataclass(frozen=True)
class Reply:
    """A reply that can be merged.

    Attributes
    ----------
    node
        Where it came from.
    name
        The sender, for the log.
    metrics
        What the client measured, under its record's name.
    state_dict
        Its network, in the order of the reference's keys.
    weight
        Its share in the average, for example its number of examples.
    moments
        The moments of its network's activations, if it sent usable ones.
    """

    node: int
    name: str
    metrics: tuple[str, MetricRecord]
    state_dict: dict[str, Tensor]
    weight: float
    moments: dict[str, Moments] | None = None


class UnusableReplyError(Exception):
    """A reply that is left out of the round, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def read_replies(
    messages: Iterable[Message],
    reference: Mapping[str, Tensor],
    weighted_by_key: str,
    broadcast: Mapping[str, Tensor] | None = None,
) -> list[Reply]:
    """Read what can be merged, in an order that depends on the content alone; the log names the rest.

    Parameters
    ----------
    messages
        Replies without an error.
    reference
        The model's tensors: names, shapes and dtypes that a client's must have.
    weighted_by_key
        The metric that weighs the clients.
    broadcast
        The network that the clients set out from, if it is known: one more opinion on how large a network is.
    """
    read: list[Reply] = []
    for message in messages:
        name = f"node {message.metadata.src_node_id}"
        try:
            read.append(_read(name, message, reference, weighted_by_key))
        except UnusableReplyError as reason:
            leave_out(reason.name, str(reason))
    order = canonical_order([reply.state_dict for reply in read], [reply.weight for reply in read])
    return _plausible(_once([read[position] for position in order]), broadcast)


def is_weight(value: object) -> TypeGuard[float]:
    """Whether a client can count with this weight."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def leave_out(name: str, reason: str) -> None:
    """Say in the log who is left out, and why."""
    log(WARNING, "aggregate_train: Left out %s: %s", name, reason)


def _once(replies: Iterable[Reply]) -> list[Reply]:
    kept: dict[int, Reply] = {}
    for reply in replies:
        if reply.node in kept:
            leave_out(reply.name, "it answered more than once; one answer counts")
        else:
            kept[reply.node] = reply
    return list(kept.values())


def _plausible(replies: Sequence[Reply], broadcast: Mapping[str, Tensor] | None) -> list[Reply]:
    reasons = implausible([reply.state_dict for reply in replies], broadcast)
    for reply, reason in zip(replies, reasons, strict=True):
        if reason:
            leave_out(reply.name, reason)
    return [reply for reply, reason in zip(replies, reasons, strict=True) if not reason]


def _read(name: str, message: Message, reference: Mapping[str, Tensor], weighted_by_key: str) -> Reply:
    content = message.content
    metric_records = list(content.metric_records.items())
    if len(metric_records) != 1:
        raise UnusableReplyError(name, f"the reply has {len(metric_records)} MetricRecords instead of one")
    metrics = metric_records[0][1]
    if CLIENT_ID_KEY in metrics:
        name = f"client {metrics[CLIENT_ID_KEY]} ({name})"
    weight = metrics.get(weighted_by_key)
    if not is_weight(weight):
        raise UnusableReplyError(name, f"its metric {weighted_by_key!r} is {weight!r}, not a positive number")
    array_records = [record for key, record in content.array_records.items() if key != MOMENTS_KEY]
    if len(array_records) != 1:
        raise UnusableReplyError(name, f"the reply has {len(array_records)} ArrayRecords instead of one")
    try:
        state_dict = dict(array_records[0].to_torch_state_dict())
    except Exception as error:  # the bytes may be anything, and so may be what decoding them raises
        raise UnusableReplyError(name, f"its arrays cannot be read: {error}") from error
    if reason := defect(state_dict, reference):
        raise UnusableReplyError(name, reason)
    return Reply(
        node=message.metadata.src_node_id,
        name=name,
        metrics=metric_records[0],
        state_dict={key: state_dict[key] for key in reference},
        weight=float(weight),
        moments=read_moments(name, content),
    )


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
