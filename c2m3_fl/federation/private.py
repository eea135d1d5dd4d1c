"""What of Flower is used that Flower does not promise to keep. If a release moves it, this file changes, and no other."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Message
from flwr.serverapp.strategy import FedAvg

CLIPPING_KEY = "clipping_norm"
"""Key of a training config by which Flower's strategies for client-side clipping speak to its mods."""


def with_content(strategy: FedAvg, replies: Sequence[Message], *, is_train: bool) -> list[Message]:
    """The replies that are no errors, after Flower's own log of how many there are and of each error."""
    found, _ = strategy._check_and_log_replies(replies, is_train=is_train, validate=False)
    return found
