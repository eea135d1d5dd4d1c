"""An in-process federation that measures: bytes each way, seconds of the server, seconds of the clients.

The clients' training of the first round does not depend on the server's strategy, so it is done once for all strategies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict, UserConfig

from clients.client_app import CONFIG, FIRST_ROUND
from simulations.engines.grid import InProcessGrid

Client = Callable[[Message, Context], Message]


@dataclass
class RoundMeter:
    """What one round took.

    Attributes
    ----------
    bytes_down, bytes_up
        Of all messages' arrays, server to clients and back.
    server_seconds
        From the last reply to the new global network.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    server_seconds: float = 0.0


class FirstRound:
    """A client that trains once for equal messages of the first round, and gives the same answer again.

    Parameters
    ----------
    client
        The ClientApp.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answers: dict[tuple[str, str], RecordDict] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        config = cast(ConfigRecord, message.content[CONFIG])
        if message.metadata.message_type != MessageType.TRAIN or config.get("server-round") != FIRST_ROUND:
            return self._client(message, context)
        # Flower names content by its hash, which covers the network and the config sent.
        key = (message.content.object_id, repr(sorted(context.node_config.items())))
        if key not in self._answers:
            answer = self._client(message, context)
            if answer.has_error():
                return answer
            self._answers[key] = answer.content
        # A copy each time: FedMedian empties the records that it reads.
        records = {name: record.copy() for name, record in self._answers[key].items()}
        return Message(RecordDict(records), reply_to=message)


class MeteredGrid(InProcessGrid):
    """Measures each round: see `RoundMeter`; ``rounds[0]`` is the first."""

    def __init__(self, app: Client, num_nodes: int, run_config: UserConfig) -> None:
        super().__init__(app, num_nodes, run_config)
        self.rounds: list[RoundMeter] = []
        self._aggregating_since: float | None = None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """As in the base class."""
        sent = list(messages)
        if sent and sent[0].metadata.message_type == MessageType.TRAIN:
            self.rounds.append(RoundMeter())
        meter = self.rounds[-1]
        if self._aggregating_since is not None:
            meter.server_seconds += time.perf_counter() - self._aggregating_since
        replies = super().send_and_receive(sent, timeout=timeout)
        meter.bytes_down += sum(_array_bytes(message) for message in sent)
        meter.bytes_up += sum(_array_bytes(message) for message in replies)
        # The strategy evaluates after it has aggregated, always, be it with no messages.
        asks_within_round = bool(sent) and sent[0].metadata.message_type != MessageType.EVALUATE
        self._aggregating_since = time.perf_counter() if asks_within_round else None
        return replies


def _array_bytes(message: Message) -> int:
    if message.has_error():
        return 0
    return sum(record.count_bytes() for record in message.content.array_records.values())
