"""Clients that go wrong, one by one: nothing stops, the log says why, and the global model does not suffer."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from tests.federation.faults import (
    FAULTS,
    FAULTY_NODE,
    HONEST,
    answer,
    honest_replies,
    noise,
    play,
    reply,
    scene,
    strategy,
    without,
)

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


def test_the_table_is_long() -> None:
    assert len(FAULTS) >= 75


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_its_client_only(name: str, flower_log: pytest.LogCaptureFixture) -> None:
    fault = FAULTS[name]
    with flower_log.at_level(logging.INFO, logger="flwr"):
        found = play(fault)
    sent = len(fault.replies())
    assert found.metrics["c2m3-left-out"] == fault.left_out
    assert found.metrics["c2m3-clients"] == HONEST + sent - fault.left_out
    assert found.accuracy >= found.alone - noise()
    if fault.left_out:
        assert f"node {FAULTY_NODE}" in flower_log.text
        assert fault.reason in flower_log.text
    if fault.left_out == sent:
        alone = without(fault.robust)
        assert all(torch.equal(tensor, alone[key]) for key, tensor in found.merged.items())


def test_malicious_clients_are_worth_the_option() -> None:
    harmed = [
        name
        for name, fault in FAULTS.items()
        if fault.robust and play(fault, {}).accuracy < play(fault).accuracy - noise()
    ]
    assert {"huge weight", "boosted", "noise", "two colluding"} <= set(harmed)


@pytest.mark.parametrize("robust", ["exclude", "median", "trimmed-mean"])
def test_honest_clients_stay(robust: str) -> None:
    arrays, metrics = strategy(robust=robust).aggregate_train(1, honest_replies())
    assert arrays is not None
    assert metrics is not None
    assert metrics["c2m3-left-out"] == 0
    alone = scene().accuracy(without(False))
    assert scene().accuracy(dict(arrays.to_torch_state_dict())) >= alone - noise()


class Grid:
    def get_node_ids(self) -> list[int]:
        return list(range(100, 100 + HONEST + 1))


def test_who_does_not_answer_is_counted(flower_log: pytest.LogCaptureFixture) -> None:
    server = strategy()
    asked = server.configure_train(1, ArrayRecord(scene().broadcast), ConfigRecord(), Grid())  # type: ignore[arg-type]
    _, metrics = server.aggregate_train(1, honest_replies())
    assert metrics is not None
    assert (len(list(asked)), metrics["c2m3-silent"]) == (HONEST + 1, 1)
    assert "1 of 6 replies are not here" in flower_log.text


def test_one_client_of_absurd_size_is_measured_against_the_broadcast() -> None:
    server = strategy()
    server.configure_train(1, ArrayRecord(scene().broadcast), ConfigRecord(), Grid())  # type: ignore[arg-type]
    huge = {name: torch.full_like(tensor, 1e30) for name, tensor in scene().own.items()}
    arrays, metrics = server.aggregate_train(1, [reply(1, huge)])
    assert arrays is None
    assert metrics is not None
    assert metrics["c2m3-left-out"] == 1


EVALUATIONS = {
    "no metrics": RecordDict(),
    "two records": RecordDict({"a": MetricRecord({"num-examples": 1}), "b": MetricRecord({"num-examples": 1})}),
    "no weight": RecordDict({"m": MetricRecord({"loss": 9.0})}),
    "weight of zero": RecordDict({"m": MetricRecord({"num-examples": 0, "loss": 9.0})}),
    "nan weight": RecordDict({"m": MetricRecord({"num-examples": float("nan"), "loss": 9.0})}),
    "list as weight": RecordDict({"m": MetricRecord({"num-examples": [1, 2], "loss": 9.0})}),
}


@pytest.mark.parametrize("fault", EVALUATIONS)
def test_a_fault_in_an_evaluation_costs_only_itself(fault: str, flower_log: pytest.LogCaptureFixture) -> None:
    good = [answer(i, RecordDict({"m": MetricRecord({"num-examples": 10, "loss": float(i)})})) for i in (1, 2)]
    metrics = strategy().aggregate_evaluate(1, [answer(FAULTY_NODE, EVALUATIONS[fault]), *good])
    assert metrics is not None
    assert metrics["loss"] == pytest.approx(1.5)
    assert f"Left out node {FAULTY_NODE}" in flower_log.text


def test_a_users_aggregation_of_metrics_gets_whole_replies_and_its_errors_surface() -> None:
    seen: list[RecordDict] = []

    def own(records: list[RecordDict], key: str) -> MetricRecord:
        seen.extend(records)
        if any("accuracy" in record for content in records for record in content.metric_records.values()):
            raise KeyError("accuracy")
        return MetricRecord({"mine": len(records)})

    server = strategy(train_metrics_aggr_fn=own, evaluate_metrics_aggr_fn=own)
    _, metrics = server.aggregate_train(1, honest_replies())
    assert metrics is not None
    assert (metrics["mine"], metrics["c2m3-clients"]) == (HONEST, HONEST)
    assert all(list(content.array_records) == ["arrays"] for content in seen)
    evaluated = answer(1, RecordDict({"m": MetricRecord({"num-examples": 1, "accuracy": 1.0})}))
    with pytest.raises(KeyError, match="accuracy"):
        server.aggregate_evaluate(1, [evaluated])


def test_nothing_to_evaluate_is_no_error() -> None:
    assert strategy().aggregate_evaluate(1, []) is None
    message = Message(RecordDict(), 1, MessageType.EVALUATE)
    assert strategy().aggregate_evaluate(1, [Message(RecordDict(), reply_to=message)]) is None


def test_the_page_lists_every_fault() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [fault.what for fault in FAULTS.values() if f"| {fault.what} |" not in text]
    assert not missing, "write the page anew: python -m tests.federation.faults docs/faults.md"
