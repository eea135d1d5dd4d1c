"""The run config: everything documented, everything checked."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from clients.settings import ClientSettings, SettingsError
from simulations.app.settings import SimulationSettings

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def documented() -> dict[str, Any]:
    config: dict[str, Any] = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    return config


def test_pyproject_lists_every_key_with_its_default() -> None:
    assert documented() == SimulationSettings().run_config()


def test_a_run_config_survives_the_round_trip() -> None:
    settings = SimulationSettings(strategy="fedprox", learning_rate=0.3, download=True, num_clients=4)
    assert SimulationSettings.parse(settings.run_config(), strict=True) == settings


def test_what_is_left_out_takes_its_default_and_integers_serve_as_numbers() -> None:
    settings = ClientSettings.parse({"learning-rate": 1})
    assert settings == ClientSettings(learning_rate=1.0)
    assert type(settings.learning_rate) is float


def test_a_client_ignores_the_servers_keys() -> None:
    assert ClientSettings.parse({"strategy": "anything"}) == ClientSettings()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"learning_rate": 0.1}, "no key 'learning_rate'"),
        ({"learning-rate": 0}, "learning-rate must be above 0"),
        ({"learning-rate": float("nan")}, "learning-rate must be finite"),
        ({"learning-rate": "fast"}, "learning-rate must be of type float"),
        ({"local-epochs": 1.5}, "local-epochs must be of type int"),
        ({"local-epochs": True}, "local-epochs must be of type int"),
        ({"download": 1}, "download must be of type bool"),
        ({"fraction-train": 1.5}, "fraction-train must be at most 1"),
        ({"batch-size": 0}, "batch-size must be at least 1"),
        ({"partition": "idd"}, "partition must be one of iid"),
        ({"strategy": "C2M3"}, "strategy must be one of c2m3"),
        ({"initialisation": "own"}, "per-client"),
        ({"output": "results.json"}, "absolute path"),
        ({"compare": "fedavg, fedadam"}, "compare names fedadam"),
    ],
)
def test_what_cannot_be_is_refused_by_name(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        SimulationSettings.parse(config, strict=True)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"seed.*batch-size"):
        SimulationSettings.parse({"batch-size": 0, "seed": -1}, strict=True)
