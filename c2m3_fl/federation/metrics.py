"""The clients' metrics of a round, and what the strategy adds to them."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

from flwr.app import MetricRecord, RecordDict

from c2m3_fl.federation.replies import CLIENT_ID_KEY
from c2m3_fl.guard import CANDIDATES
from c2m3_fl.session import STEPS, Aggregation

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]


LONGEST_LIST = 1000
"""A metric that is a longer list is not aggregated."""


def summarised(contents: Sequence[RecordDict], key: str, aggregate: MetricsAggregation) -> MetricRecord:
    """The clients' metrics by Flower's own aggregation, which takes nothing but the same finite metrics from all.

    A metric counts in the form, a number or a list of some length, that most of the clients send; those who send it in
    another, or values that are NaN or infinite, do not count for this metric. A client's own id is no measurement.

    Parameters
    ----------
    contents
        The clients' replies, each with one MetricRecord, in which `key` is positive and finite.
    key
        The metric that weighs the clients.
    aggregate
        Flower's function.
    """
    records = [next(iter(content.metric_records.values())) for content in contents]
    weights = [cast(float, record[key]) for record in records]
    largest = max(weights)
    names = dict.fromkeys(name for record in records for name in record if name not in {key, CLIENT_ID_KEY})
    by_clients: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        if counted := _counted(name, records):
            by_clients.setdefault(counted, []).append(name)
    found = MetricRecord()
    for counted, together in by_clients.items():
        # Weights as shares: a sum of huge numbers of examples would overflow.
        parts = []
        for i in counted:
            share = max(weights[i] / largest, sys.float_info.min)
            parts.append(
                RecordDict({"metrics": MetricRecord({key: share, **{name: records[i][name] for name in together}})})
            )
        found.update(aggregate(parts, key))
    return MetricRecord({name: found[name] for name in names if name in found})


def _counted(name: str, records: Sequence[MetricRecord]) -> tuple[int, ...]:
    """Which clients count for a metric; nobody, if most do not send it in one form."""
    sent = {i: record[name] for i, record in enumerate(records) if name in record}
    forms = {i: len(value) if isinstance(value, list) else -1 for i, value in sent.items()}
    form, votes = Counter(forms.values()).most_common(1)[0]
    if 2 * votes <= len(records) or form > LONGEST_LIST:
        return ()
    return tuple(i for i, own in forms.items() if own == form and _is_finite(sent[i]))


def _is_finite(value: Any) -> bool:
    return all(math.isfinite(each) for each in (value if isinstance(value, list) else [value]))


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
