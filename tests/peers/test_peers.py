"""A drop-in: what Flower's examples federate, by FedAvg and by C2M3, from common and from own starts."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp.strategy import Result

from simulations.engines.grid import InProcessGrid
from tests.peers.networks import NormalisedNet
from tests.peers.peers import CLIENTS, PEERS, client_app, initial, run, sent, strategy


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)


def losses(result: Result) -> list[float]:
    """By round, the global network's loss on the clients' training examples."""
    found = [result.evaluate_metrics_clientapp[number]["loss"] for number in sorted(result.evaluate_metrics_clientapp)]
    return [float(value) for value in found if isinstance(value, float)]


@pytest.mark.parametrize("own_start", [False, True], ids=["common", "own"])
@pytest.mark.parametrize("name", ["fedavg", "c2m3"])
@pytest.mark.parametrize("example", PEERS)
def test_a_run_ends_with_a_model(example: str, name: str, own_start: bool) -> None:
    peer = PEERS[example]
    rounds = 1 if own_start else 2
    result = run(example, name, own_start, rounds)
    expected = sent(peer, initial(peer))
    assert list(result.arrays) == list(expected)
    for tensor, array in result.arrays.items():
        assert array.shape == expected[tensor].shape
        assert np.isfinite(array.numpy()).all(), tensor
    assert len(losses(result)) == rounds
    if name == "c2m3":
        for metrics in result.train_metrics_clientapp.values():
            assert metrics["c2m3-clients"] == peer.clients
            assert metrics["c2m3-left-out"] == metrics["c2m3-lost"] == 0


@pytest.mark.parametrize("example", PEERS)
def test_from_a_common_start_c2m3_is_not_behind(example: str) -> None:
    fedavg, c2m3 = (losses(run(example, name, False, 2)) for name in ("fedavg", "c2m3"))
    assert c2m3[-1] < 1.2 * fedavg[-1] + 0.03


@pytest.mark.parametrize("example", [name for name, peer in PEERS.items() if peer.ahead is not None])
def test_from_own_starts_c2m3_is_ahead(example: str) -> None:
    ahead = PEERS[example].ahead
    assert ahead is not None
    fedavg, c2m3 = (losses(run(example, name, True, 1)) for name in ("fedavg", "c2m3"))
    assert c2m3[-1] < ahead * fedavg[-1]


@pytest.mark.parametrize("example", ["dp-server-side-clipping", "dp-client-side-clipping"])
def test_counters_of_batches_survive_clipping(example: str) -> None:
    peer = replace(PEERS[example], module=NormalisedNet, steps=5)
    start = sent(peer, initial(peer))
    result = strategy(peer, "c2m3").start(InProcessGrid(client_app(peer, False), CLIENTS, {}), start, num_rounds=2)
    assert [metrics["c2m3-left-out"] for metrics in result.train_metrics_clientapp.values()] == [0, 0]
    counter = result.arrays["bn1.num_batches_tracked"]
    assert (counter.dtype, int(counter.numpy())) == ("int64", 10)


def test_clients_of_fedprox_get_their_factor_from_the_train_config() -> None:
    peer = replace(PEERS["quickstart-pytorch"], steps=1)
    inner, asked = client_app(peer, False), []

    def spy(message: Message, context: Context) -> Message:
        asked.append(cast(ConfigRecord, message.content["config"]).get("proximal-mu"))
        return inner(message, context)

    for config, expected in ((None, None), (ConfigRecord({"proximal-mu": 0.1}), 0.1)):
        asked.clear()
        strategy(peer, "c2m3").start(
            InProcessGrid(spy, CLIENTS, {}), sent(peer, initial(peer)), num_rounds=1, train_config=config
        )
        assert asked[:CLIENTS] == [expected] * CLIENTS
