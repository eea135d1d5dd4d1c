"""Composition with what Flower offers: differential privacy on either side, FedProx-like clients."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.server import LegacyContext
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Result,
    Strategy,
)
from torch import Tensor

from c2m3_fl import C2M3
from simulations.engines.grid import InProcessGrid
from tests.federation.faults import SPEC, network, scene

CLIENTS = 4


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="flwr")


def app(*mods: Any) -> ClientApp:
    """Clients that train from what they get, each on examples of its own."""
    made = ClientApp(mods=list(mods))

    @made.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        module = network()
        module.load_state_dict(cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict())
        part = slice(100 * client, 100 * (client + 1))
        inputs, labels = scene().inputs[part], scene().labels[part]
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(inputs), labels).backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": 100, "client-id": client})
        return Message(RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics}), reply_to=message)

    return made


def strategy() -> C2M3:
    return C2M3(
        module=network,
        spec=SPEC,
        calibration=scene().calibration,
        device="cpu",
        fraction_evaluate=0.0,
        min_train_nodes=CLIENTS,
        min_available_nodes=CLIENTS,
    )


def run(server: Strategy, *mods: Any, rounds: int = 2) -> Result:
    broadcast = ArrayRecord(scene().broadcast)
    return server.start(InProcessGrid(app(*mods), CLIENTS, {}), broadcast, num_rounds=rounds)


def accuracy(result: Result) -> float:
    return scene().accuracy(cast(dict[str, Tensor], result.arrays.to_torch_state_dict()))


def test_noise_on_the_server() -> None:
    still = run(DifferentialPrivacyServerSideFixedClipping(strategy(), 0.0, 5.0, CLIENTS))
    noisy = run(DifferentialPrivacyServerSideFixedClipping(strategy(), 0.01, 5.0, CLIENTS))
    for result in (still, noisy):
        assert [metrics["c2m3-clients"] for metrics in result.train_metrics_clientapp.values()] == [CLIENTS] * 2
        assert list(result.arrays) == list(scene().broadcast)
        assert accuracy(result) > 0.7
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            still.arrays.to_torch_state_dict().values(), noisy.arrays.to_torch_state_dict().values(), strict=True
        )
    )


def test_clipping_by_the_clients() -> None:
    result = run(DifferentialPrivacyClientSideFixedClipping(strategy(), 0.01, 5.0, CLIENTS), fixedclipping_mod)
    assert [metrics["c2m3-left-out"] for metrics in result.train_metrics_clientapp.values()] == [0, 0]
    assert accuracy(result) > 0.7


def test_noise_by_the_clients() -> None:
    result = run(strategy(), LocalDpMod(clipping_norm=5.0, sensitivity=0.001, epsilon=1.0, delta=0.1))
    assert [metrics["c2m3-left-out"] for metrics in result.train_metrics_clientapp.values()] == [0, 0]
    assert accuracy(result) > 0.7


def test_moments_and_client_side_clipping_exclude_each_other() -> None:
    server = C2M3(module=network, spec=SPEC, moments_from="clients", device="cpu")
    with pytest.raises(ValueError, match="moments_from"):
        run(DifferentialPrivacyClientSideFixedClipping(server, 0.01, 5.0, CLIENTS), fixedclipping_mod)


def test_secure_aggregation_is_refused() -> None:
    legacy = LegacyContext(
        context=Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}),
        strategy=strategy(),  # type: ignore[arg-type]
    )
    with pytest.raises(TypeError, match="secure aggregation"):
        DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(3, 2))(InProcessGrid(app(), CLIENTS, {}), legacy)
