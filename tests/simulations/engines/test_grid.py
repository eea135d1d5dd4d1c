"""The in-process federation: Flower's own strategies run on it unchanged."""

from typing import cast

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from simulations.engines.grid import InProcessGrid

echo = ClientApp()


@echo.train()
def _train(message: Message, context: Context) -> Message:
    if context.node_config["partition-id"] == 1:
        raise KeyError("broken on purpose")
    metrics = MetricRecord({"num-examples": 1, "id": float(context.node_config["partition-id"])})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)


def send(grid: InProcessGrid, nodes: list[int]) -> list[Message]:
    content = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()})
    return grid.send_and_receive([Message(content, node, MessageType.TRAIN) for node in nodes])


def test_every_client_answers_for_itself_and_an_exception_becomes_an_error_reply() -> None:
    grid = InProcessGrid(echo, 3, {})
    replies = send(grid, grid.get_node_ids())
    assert [reply.metadata.src_node_id for reply in replies] == grid.get_node_ids()
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "KeyError: 'broken on purpose'" in replies[1].error.reason
    assert [cast(MetricRecord, replies[i].content["metrics"])["id"] for i in (0, 2)] == [0, 2]


def test_replies_come_in_one_order_whatever_the_order_of_messages() -> None:
    grid = InProcessGrid(echo, 3, {})
    backwards = send(grid, grid.get_node_ids()[::-1])
    assert [reply.metadata.src_node_id for reply in backwards] == grid.get_node_ids()


def test_a_strategy_survives_a_client_that_fails() -> None:
    result = FedAvg(fraction_evaluate=0.0).start(InProcessGrid(echo, 3, {}), ArrayRecord(), num_rounds=2)
    assert result.train_metrics_clientapp[2]["id"] == pytest.approx(1.0)  # of clients 0 and 2
