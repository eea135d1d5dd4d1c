"""The clients' metrics of a round, and what the strategy adds to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import MetricRecord, RecordDict

from c2m3_fl.federation.replies import CLIENT_ID_KEY
from c2m3_fl.guard import CANDIDATES
from c2m3_fl.session import STEPS, Aggregation

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]


def common_metrics(contents: Sequence[RecordDict]) -> list[RecordDict]:
    """What all clients measured in one form, for Flower's own aggregation, which takes nothing else.

    A client's own id is no measurement.
    """
    records = [next(iter(content.metric_records.items())) for content in contents]
    common = {
        key
        for key, form in _forms(records[0][1]).items()
        if key != CLIENT_ID_KEY and all(_forms(record).get(key, -1) == form for _, record in records)
    }
    return [
        RecordDict({name: MetricRecord({key: value for key, value in record.items() if key in common})})
        for name, record in records
    ]


def _forms(record: MetricRecord) -> dict[str, int | None]:
    """Length of each metric that is a list, None for numbers."""
    return {key: len(value) if isinstance(value, list) else None for key, value in record.items()}


def diagnostics(aggregation: Aggregation) -> dict[str, float]:
    """What the strategy adds to a round's metrics about the merge."""
    alignment = aggregation.alignment
    return {
        "c2m3-chosen": CANDIDATES.index(aggregation.chosen),
        "c2m3-objective-before": alignment.objective_before,
        "c2m3-objective": alignment.objective,
        "c2m3-moved": alignment.moved,
        "c2m3-iterations": len(alignment.iterations) - 1,
        **{f"c2m3-{step}-seconds": aggregation.seconds.get(step, 0.0) for step in STEPS},
        **{f"c2m3-score-{name}": loss for name, loss in aggregation.scores.items()},
        **{f"c2m3-errors-{name}": count for name, count in aggregation.errors.items()},
    }
