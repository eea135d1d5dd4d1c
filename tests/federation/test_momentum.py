"""Server momentum: FedAvgM's where nothing is merged but averages, none where neurons moved, and part of a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedAvgM
from torch import nn

from c2m3_fl import C2M3, PermutationSpec
from c2m3_fl.federation.momentum import ServerMomentum
from simulations.app.settings import SimulationSettings
from simulations.engines.grid import InProcessGrid, simulate
from tests.federation.harness import CLIENTS, ROUNDS, app, initial, run, strategy

PLAIN = {"matcher": "identity", "repair": None, "moments_from": "server", "fraction_train": 1.0}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="flwr")


def outcome(server: FedAvg) -> dict[str, torch.Tensor]:
    result = server.start(InProcessGrid(app, CLIENTS, {}), ArrayRecord(initial()), num_rounds=4)
    return dict(result.arrays.to_torch_state_dict())


def test_on_plain_averages_it_is_fedavgm() -> None:
    ours = outcome(strategy(None, server_momentum=0.7, **PLAIN))
    theirs = outcome(FedAvgM(server_momentum=0.7, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS))
    without = outcome(strategy(None, **PLAIN))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-5)
    assert any(not torch.allclose(ours[name], without[name], atol=1e-3) for name in ours)


def test_a_run_in_two_parts_keeps_its_momentum(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.npz", server_momentum=0.5)
    run(tmp_path / "run.npz", rounds=2, server_momentum=0.5)
    resumed = run(tmp_path / "run.npz", server_momentum=0.5)
    assert resumed.pop("done") == 2
    assert resumed == {key: value for key, value in whole.items() if key != "done"}
    assert whole["digest"] != run(None, rounds=ROUNDS)["digest"]


def test_where_neurons_are_mapped_elsewhere_it_starts_afresh() -> None:
    own = SimulationSettings(
        model_width=0.1, local_epochs=5, initialisation="per-client", guard=False, num_server_rounds=1
    )
    with_momentum = SimulationSettings(**{**vars(own), "strategy": "c2m3-momentum"})
    assert simulate(with_momentum, 3).rounds[1].server == simulate(own, 3).rounds[1].server
    momentum = ServerMomentum(0.5, ["a"])
    before, merged = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    momentum.step(before, merged)
    momentum.restart()
    assert momentum.step(before, merged)["a"].equal(merged["a"])


def test_running_statistics_are_not_extrapolated() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

    server = C2M3(
        module=network,
        spec=PermutationSpec.from_module(network(), torch.zeros(2, 3)),
        server_momentum=0.9,
        device="cpu",
    )
    states = [dict(network().state_dict()) for _ in range(3)]
    server.momentum.step(states[0], states[1])
    result = server.momentum.step(states[1], states[2])
    assert sorted(name for name in result if not result[name].equal(states[2][name])) == [
        "0.bias",
        "0.weight",
        "3.bias",
        "3.weight",
    ]
    assert np.array_equal(result["1.num_batches_tracked"], states[2]["1.num_batches_tracked"])


@pytest.mark.parametrize("factor", [-0.1, 1.0, float("nan")])
def test_a_factor_that_cannot_be_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="server_momentum is"):
        strategy(None, server_momentum=factor)
