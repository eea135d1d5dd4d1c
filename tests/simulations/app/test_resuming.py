"""A run with a checkpoint: interrupted in the middle of a round, started again, and nobody could tell."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from flwr.app import ConfigRecord, Context, Message

from clients.client_app import app as client_app
from clients.settings import SettingsError
from simulations.app.server_app import run
from simulations.app.settings import SimulationSettings
from simulations.engines.grid import InProcessGrid, simulate

QUICK = SimulationSettings(model_width=0.1, local_epochs=1, num_server_rounds=4, fraction_train=0.5, num_clients=6)


def interrupted(message: Message, context: Context) -> Message:
    """A client during whose third round somebody stops the server."""
    if cast(ConfigRecord, message.content["config"]).get("server-round") == 3:
        raise KeyboardInterrupt
    return client_app(message, context)


@pytest.mark.parametrize("strategy", ["c2m3", "c2m3-align"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, strategy: str) -> None:
    whole = simulate(replace(QUICK, strategy=strategy), 6)
    settings = replace(QUICK, strategy=strategy, compare="fedavg,c2m3", checkpoint=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        run(InProcessGrid(interrupted, 6, settings.run_config()), settings)
    resumed = simulate(settings, 6)
    assert [each.round for each in resumed.rounds] == [2, 3, 4]
    assert [each.server for each in resumed.rounds] == [each.server for each in whole.rounds[2:]]
    # Clients hold different parts of the data: another draw of them would show.
    assert [each.train["train-loss"] for each in resumed.rounds[1:]] == [
        each.train["train-loss"] for each in whole.rounds[3:]
    ]
    assert [sorted(each.comparison["merged"]) for each in resumed.rounds[1:]] == [["c2m3", "fedavg"]] * 2


def test_a_finished_run_is_not_trained_again_but_may_go_on_for_longer(tmp_path: Path) -> None:
    settings = replace(QUICK, num_server_rounds=1, checkpoint=str(tmp_path))
    first, again = simulate(settings, 6), simulate(settings, 6)
    assert [each.round for each in again.rounds] == [1]
    assert again.accuracy == first.accuracy
    assert [each.round for each in simulate(replace(settings, num_server_rounds=2), 6).rounds] == [1, 2]


def test_a_folder_is_one_runs(tmp_path: Path) -> None:
    settings = replace(QUICK, num_server_rounds=1, checkpoint=str(tmp_path))
    simulate(settings, 6)
    with pytest.raises(SettingsError, match=r"differs in learning-rate, seed\."):
        simulate(replace(settings, seed=1, learning_rate=0.1), 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"checkpoint": "here"}, "absolute path"), ({"checkpoint": "/a", "strategy": "fedavg"}, "c2m3, c2m3-align")],
)
def test_a_checkpoint_that_cannot_be_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        replace(QUICK, **options)
