"""What of Flower is used that Flower does not promise to keep. If a release moves it, this file changes, and no other."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

try:
    from flwr.supercore.run import Run
except ImportError:  # Flower 1.28
    from flwr.common.typing import Run  # type: ignore[attr-defined,no-redef]

__all__ = ["CLIENT_RAISED", "CLIPPING_KEY", "Run", "act_as", "empty_run", "mean_metrics", "with_content"]

CLIPPING_KEY = "clipping_norm"
"""Key of a training config by which Flower's strategies for client-side clipping speak to its mods."""

CLIENT_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""Code of the error reply that stands for an exception in a ClientApp."""


def with_content(strategy: FedAvg, replies: Sequence[Message], *, is_train: bool) -> list[Message]:
    """The replies that are no errors, after Flower's own log of how many there are and of each error."""
    found, _ = strategy._check_and_log_replies(replies, is_train=is_train, validate=False)
    return found


def mean_metrics(replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """The weighted mean of the replies' metrics, as FedAvg takes it by default."""
    return aggregate_metricrecords(replies, weighted_by_key)


def act_as(node_id: int, run_id: int = 1) -> None:
    """Give this process the identity that messages carry, which Flower's own processes get when they start.

    Outside a run no message can be made without it. Older releases of Flower (1.28) know no such identity and need none.
    """
    try:
        from flwr.supercore.task_identity import TaskIdentity  # noqa: PLC0415
    except ImportError:
        return
    TaskIdentity.task_id = TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def empty_run(run_id: int) -> Run:
    """A run of which nothing is known but its number."""
    return Run.create_empty(run_id)
