"""The ClientApp, called as Flower calls it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.client_app import app, client_indices
from clients.data import load_data
from clients.settings import ClientSettings
from simulations.app.central import global_model

CLIENTS = 3
QUICK = ClientSettings(model_width=0.1, local_epochs=1)


def ask(kind: str, settings: ClientSettings, client: int, server_round: int, **config: Any) -> RecordDict:
    arrays = ArrayRecord(global_model(settings).state_dict())
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": server_round, **config})})
    context = Context(
        run_id=1,
        node_id=10 + client,
        node_config={"partition-id": client, "num-partitions": CLIENTS},
        state=RecordDict(),
        run_config=settings.run_config(),
    )
    return app(Message(content, 10 + client, kind), context).content


def trained(settings: ClientSettings, client: int, server_round: int = 1, **config: Any) -> dict[str, Tensor]:
    record = ask("train", settings, client, server_round, **config)["arrays"]
    assert isinstance(record, ArrayRecord)
    return dict(record.to_torch_state_dict())


def metrics(content: RecordDict) -> MetricRecord:
    record = content["metrics"]
    assert isinstance(record, MetricRecord)
    return record


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


def test_a_client_sends_its_network_its_number_and_its_count() -> None:
    content = ask("train", QUICK, 2, 1)
    assert metrics(content)["client-id"] == 2
    assert metrics(content)["num-examples"] == len(client_indices(QUICK, CLIENTS, 2)[0])
    assert metrics(content)["train-loss"] > 0
    assert trained(QUICK, 2).keys() == global_model(QUICK).state_dict().keys()


def test_training_is_the_same_in_any_process_and_changes_with_the_round() -> None:
    assert equal(trained(QUICK, 0), trained(QUICK, 0))
    assert not equal(trained(QUICK, 0, 1), trained(QUICK, 0, 2))


def test_shared_initialisation_starts_from_the_broadcast() -> None:
    still = replace(QUICK, local_epochs=0)
    assert equal(trained(still, 0), dict(global_model(still).state_dict()))


def test_per_client_initialisation_starts_each_from_its_own_network_in_the_first_round_only() -> None:
    still = replace(QUICK, local_epochs=0, initialisation="per-client")
    first, second = trained(still, 0), trained(still, 1)
    broadcast = dict(global_model(still).state_dict())
    assert not equal(first, second)
    assert not equal(first, broadcast)
    assert equal(first, trained(still, 0))
    assert not equal(first, trained(replace(still, seed=1), 0))
    assert equal(trained(still, 0, server_round=2), broadcast)


def test_fedprox_reaches_the_clients() -> None:
    assert not equal(trained(QUICK, 0), trained(QUICK, 0, **{"proximal-mu": 1.0}))


def test_no_example_is_both_trained_on_and_validated_on_or_shared_between_clients() -> None:
    everything = torch.cat([torch.cat(client_indices(QUICK, CLIENTS, i)) for i in range(CLIENTS)])
    assert len(everything.unique()) == len(everything)
    assert len(everything) == len(load_data("digits").train) - QUICK.calibration_size


def test_evaluation_reports_the_validation_examples() -> None:
    report = metrics(ask("evaluate", QUICK, 1, 1))
    assert report["num-examples"] == len(client_indices(QUICK, CLIENTS, 1)[1])
    assert 0 <= report["eval-accuracy"] <= 1


def test_evaluation_without_validation_examples_says_which_key_to_set() -> None:
    with pytest.raises(ValueError, match="validation-fraction"):
        ask("evaluate", replace(QUICK, validation_fraction=0.0), 1, 1)


def test_batch_norms_counters_stay_integers() -> None:
    settings = replace(QUICK, model="resnet20", model_norm="batch", model_width=0.1)
    sent = trained(settings, 0)
    assert sent["norm.num_batches_tracked"].dtype == torch.int64
    assert sent["norm.num_batches_tracked"] > 0


def test_clients_share_no_more_examples_than_they_are_told_to() -> None:
    limited = replace(QUICK, train_size=90, validation_fraction=0.0)
    shares = [client_indices(limited, CLIENTS, client)[0] for client in range(CLIENTS)]
    assert len(torch.cat(shares).unique()) == 90
    everything = torch.cat([client_indices(QUICK, CLIENTS, client)[0] for client in range(CLIENTS)])
    assert len(everything) > 900


def test_moments_come_when_they_are_asked_for() -> None:
    assert "c2m3-moments" not in ask("train", QUICK, 0, 1)
    own = ask("train", QUICK, 0, 1, **{"c2m3-moments": True})["c2m3-moments"]
    merged = ask("query.c2m3_moments", QUICK, 0, 1)["c2m3-moments"]
    assert isinstance(own, ArrayRecord)
    assert isinstance(merged, ArrayRecord)
    assert list(own) == list(merged)
    assert own["output.count"].numpy() == len(client_indices(QUICK, CLIENTS, 0)[1])


def test_without_validation_examples_moments_are_of_training_examples() -> None:
    settings = replace(QUICK, validation_fraction=0.0)
    record = ask("query.c2m3_moments", settings, 0, 1)["c2m3-moments"]
    assert isinstance(record, ArrayRecord)
    assert record["output.count"].numpy() == len(client_indices(settings, CLIENTS, 0)[0])


def test_a_client_trains_on_what_its_nodes_config_names(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 17, (40, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", x=images, y=np.arange(40) % 10)
    content = RecordDict(
        {"arrays": ArrayRecord(global_model(QUICK).state_dict()), "config": ConfigRecord({"server-round": 1})}
    )
    context = Context(
        run_id=1,
        node_id=10,
        node_config={"partition-id": 0, "data": str(tmp_path / "own.npz")},
        state=RecordDict(),
        run_config=QUICK.run_config(),
    )
    for kind, expected in (("train", 36), ("evaluate", 4)):
        metrics: Any = app(Message(content, 10, kind), context).content["metrics"]
        assert metrics["num-examples"] == expected
