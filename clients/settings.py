"""The run config as a typed, checked value.

A run config is Flower's flat mapping of keys to strings, numbers and booleans (``[tool.flwr.app.config]`` and
``flwr run -c "KEY=VALUE"``). Each key is the name of a field with dashes for underscores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Self, get_type_hints

from clients.models import NORMS

PARTITIONS = ("iid", "dirichlet", "pathological", "shard")
INITIALISATIONS = ("shared", "per-client")
OPTIMIZERS = ("sgd", "adam")


class SettingsError(ValueError):
    """A run config with a key that does not exist or a value that cannot be."""


@dataclass(frozen=True)
class _Limits:
    """What the value of an option may be."""

    choices: tuple[str, ...] = ()
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf

    def complaint(self, value: Any) -> str | None:
        """What is wrong with `value`, or None."""
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if not isinstance(value, int | float):
            return None
        checks = (
            (math.isfinite(value), "must be finite"),
            (value > self.above, f"must be above {self.above:g}"),
            (value >= self.least, f"must be at least {self.least:g}"),
            (value <= self.most, f"must be at most {self.most:g}"),
        )
        return next((text for passed, text in checks if not passed), None)


def option(
    default: Any,
    *,
    choices: tuple[str, ...] = (),
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> Any:
    """A field of a settings class: its default value and what its value may be."""
    return field(default=default, metadata={"limits": _Limits(choices, least, above, most)})


@dataclass(frozen=True)
class ClientSettings:
    """What a client needs to know of a run. `pyproject.toml` says what each key means."""

    seed: int = option(0, least=0, most=2**32 - 1)
    dataset: str = "digits"
    data_dir: str = "data"
    download: bool = False
    train_size: int = option(0, least=0)
    calibration_size: int = option(256, least=0)
    partition: str = option("iid", choices=PARTITIONS)
    dirichlet_alpha: float = option(0.5, above=0)
    classes_per_client: int = option(2, least=1)
    shards_per_client: int = option(2, least=1)
    validation_fraction: float = option(0.1, least=0, most=0.9)
    model: str = "mlp"
    model_width: float = option(1.0, above=0)
    model_norm: str = option("layer", choices=NORMS)
    initialisation: str = option("shared", choices=INITIALISATIONS)
    local_epochs: int = option(5, least=0)
    batch_size: int = option(32, least=1)
    optimizer: str = option("sgd", choices=OPTIMIZERS)
    learning_rate: float = option(0.05, above=0)
    momentum: float = option(0.9, least=0, most=1)
    weight_decay: float = option(0.0, least=0)
    client_device: str = "auto"
    client_threads: int = option(1, least=1)

    @classmethod
    def parse(cls, run_config: Mapping[str, Any], *, strict: bool = False) -> Self:
        """Read a run config.

        Parameters
        ----------
        run_config
            Keys with dashes to values. A key that is left out takes its default.
        strict
            Refuse keys that this class does not have. A client is not strict: some keys concern the server only.

        Raises
        ------
        SettingsError
            If a key or a value is not allowed; the message names all of them.
        """
        options = {spec.name.replace("_", "-"): spec for spec in fields(cls)}
        types = get_type_hints(cls)
        problems = [f"there is no key {key!r}" for key in run_config if strict and key not in options]
        values: dict[str, Any] = {}
        for key, spec in options.items():
            if key not in run_config:
                continue
            try:
                values[spec.name] = _checked(run_config[key], spec, types[spec.name])
            except SettingsError as error:
                problems.append(f"{key} {error}")
        if problems:
            raise SettingsError(
                f"Run config: {'; '.join(problems)}. [tool.flwr.app.config] in pyproject.toml lists all keys."
            )
        return cls(**values)

    def run_config(self) -> dict[str, Any]:
        """The run config that `parse` turns into these settings."""
        return {spec.name.replace("_", "-"): getattr(self, spec.name) for spec in fields(self)}


def _checked(value: Any, spec: Field[Any], expected: type) -> Any:
    """`value` in the type of the option, or SettingsError with what follows the key in a message."""
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise SettingsError(f"must be of type {expected.__name__}, not {value!r}")
    limits: _Limits = spec.metadata.get("limits", _Limits())
    complaint = limits.complaint(value)
    if complaint is not None:
        raise SettingsError(f"{complaint}, not {value!r}")
    return value
