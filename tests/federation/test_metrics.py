"""Metrics that no client can spoil for the others."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict

from tests.federation.faults import answer, identify, reply, scene, strategy, without


@pytest.fixture(autouse=True)
def _run() -> None:
    identify()


def evaluation(node: int, **metrics: Any) -> Message:
    return answer(node, RecordDict({"metrics": MetricRecord({"num-examples": 10, **metrics})}))


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, 2.0], [1.0] * 10**6])
def test_one_odd_value_leaves_the_metric_to_the_others(value: Any) -> None:
    found = strategy().aggregate_evaluate(
        1, [evaluation(1, loss=value), evaluation(2, loss=1.0), evaluation(3, loss=2.0)]
    )
    assert found is not None
    assert found["loss"] == pytest.approx(1.5)


def test_a_metric_that_one_client_leaves_out_counts_and_one_that_most_leave_out_does_not() -> None:
    answers = [evaluation(1, a=1.0), evaluation(2, a=3.0, b=1.0), evaluation(3, c=[1.0, 2.0])]
    found = strategy().aggregate_evaluate(1, answers)
    assert found is not None
    assert dict(found) == {"a": 2.0}


def test_lists_are_averaged_unless_they_are_endless() -> None:
    answers = [evaluation(i, short=[1.0 * i, 2.0], long=[0.0] * 2000) for i in (1, 2, 3)]
    found = strategy().aggregate_evaluate(1, answers)
    assert found is not None
    assert found["short"] == pytest.approx([2.0, 2.0])
    assert "long" not in found


def test_one_answer_a_node_counts_however_they_come(flower_log: pytest.LogCaptureFixture) -> None:
    answers = [evaluation(1, loss=9.0), evaluation(1, loss=5.0), evaluation(2, loss=1.0)]
    first = strategy().aggregate_evaluate(1, answers)
    assert first == strategy().aggregate_evaluate(1, answers[::-1])
    assert first is not None
    assert first["loss"] == 3.0
    assert "Left out node 1: it answered more than once" in flower_log.text


def test_huge_and_tiny_numbers_of_examples_are_numbers() -> None:
    honest = scene().honest
    replies = [reply(i, client, 1e308, accuracy=0.5) for i, client in enumerate(honest)]
    arrays, metrics = strategy().aggregate_train(1, replies)
    assert arrays is not None
    assert metrics is not None
    assert metrics["accuracy"] == 0.5
    alone = without(False)
    assert all(torch.equal(tensor, alone[name]) for name, tensor in arrays.to_torch_state_dict().items())
    for robust in (None, "exclude", "median"):
        replies = [reply(i, client, 5e-324 if i else 1e308, accuracy=0.5) for i, client in enumerate(honest)]
        arrays, metrics = strategy(robust=robust).aggregate_train(1, replies)
        assert arrays is not None, robust
        assert metrics is not None
        assert metrics["accuracy"] == 0.5


def test_the_cap_counts_those_who_are_merged() -> None:
    """Ten liars with tiny numbers of examples must not make an honest client small."""
    honest, examples = scene().honest, [100, 100, 3000, 100, 100]
    alone, _ = strategy(robust="exclude").aggregate_train(
        1, [reply(i, client, n) for i, (client, n) in enumerate(zip(honest, examples, strict=True))]
    )
    liars = [reply(50 + i, {name: -4 * tensor for name, tensor in honest[0].items()}, 1e-6) for i in range(4)]
    found, metrics = strategy(robust="exclude").aggregate_train(
        1, [*liars, *(reply(i, client, n) for i, (client, n) in enumerate(zip(honest, examples, strict=True)))]
    )
    assert alone is not None
    assert found is not None
    assert metrics is not None
    assert metrics["c2m3-left-out"] == 4
    expected = alone.to_torch_state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.to_torch_state_dict().items())


def test_a_clients_words_stay_short_in_the_log(flower_log: pytest.LogCaptureFixture) -> None:
    million = [1.0] * 10**6
    long = "x" * 10**6
    replies = [
        reply(1, scene().own, million),
        reply(2, scene().own | {long: torch.zeros(1)}, 5),
        answer(3, RecordDict({"arrays": ArrayRecord(scene().own), "metrics": MetricRecord({"client-id": million})})),
        answer(4, RecordDict({"arrays": ArrayRecord(scene().own), "metrics": MetricRecord({long: 1.0})})),
        reply(5, scene().own, 5, **{"client-id": million, "curve": million}),
    ]
    with flower_log.at_level(logging.INFO, logger="flwr"):
        _, metrics = strategy().aggregate_train(1, replies)
        evaluated = strategy().aggregate_evaluate(
            1,
            [
                Message(
                    RecordDict({"m": MetricRecord({"num-examples": million})}),
                    reply_to=Message(RecordDict(), 1, MessageType.EVALUATE),
                )
            ],
        )
    assert evaluated is None
    assert metrics is not None
    assert metrics["c2m3-clients"] == 1
    assert len(flower_log.text) < 20_000
    assert len(str(metrics)) < 5_000
