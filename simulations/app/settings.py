"""All of a run config, as the server reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from c2m3_fl.federation.strategy import MomentsFrom
from c2m3_fl.options import DEFAULTS
from c2m3_fl.predictions import TaskName
from c2m3_fl.repair.methods import Method
from c2m3_fl.robust import Robust
from clients.settings import ClientSettings, SettingsError, option

STRATEGIES = (
    "c2m3",
    "c2m3-align",
    "c2m3-momentum",
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
)
COMPARABLE = ("c2m3", "c2m3-align", "fedavg", "fedmedian", "fedtrimmedavg", "krum")
"""Strategies whose result follows from one round's replies alone."""
RESUMABLE = ("c2m3", "c2m3-align", "c2m3-momentum")
"""Strategies that write checkpoints."""


@dataclass(frozen=True)
class SimulationSettings(ClientSettings):
    """What the server needs to know of a run. `pyproject.toml` says what each key means."""

    strategy: str = option("c2m3", choices=STRATEGIES)
    compare: str = ""
    num_server_rounds: int = option(3, least=1)
    num_clients: int = option(0, least=0)
    min_clients: int = option(0, least=0)
    fraction_train: float = option(1.0, above=0, most=1)
    fraction_evaluate: float = option(1.0, least=0, most=1)
    matcher: str = option(DEFAULTS.matcher, choices=("default", "frank-wolfe", "identity"))
    activations: float = option(DEFAULTS.activations, least=0)
    repair: str = option(DEFAULTS.repair, choices=("auto", *get_args(Method)))
    guard: bool = DEFAULTS.guard
    robust: str = option(DEFAULTS.robust or "no", choices=("no", *get_args(Robust)))
    group_size: int = option(DEFAULTS.group_size or 0, least=0)
    task: str = option(DEFAULTS.task or "auto", choices=("auto", *get_args(TaskName)))
    moments_from: str = option("server", choices=get_args(MomentsFrom))
    proximal_mu: float = option(0.1, above=0)
    server_learning_rate: float = option(0.0, least=0)
    server_momentum: float = option(0.9, least=0, most=1)
    trim_fraction: float = option(0.2, least=0, most=0.49)
    malicious_clients: int = option(0, least=0)
    server_device: str = "auto"
    server_threads: int = option(0, least=0)
    checkpoint: str = ""
    output: str = ""

    def __post_init__(self) -> None:
        """Check what concerns more than one value."""
        wrong = [name for name in self.compared if name not in COMPARABLE]
        if wrong:
            raise SettingsError(
                f"Run config: compare names {', '.join(wrong)}; only {', '.join(COMPARABLE)} can be compared on the "
                "same replies, the others carry something over from round to round."
            )
        for key, path in (("output", self.output), ("checkpoint", self.checkpoint)):
            if path and not Path(path).is_absolute():
                raise SettingsError(
                    f"Run config: {key} must be an absolute path, not {path!r}: Flower starts the ServerApp in a folder "
                    "of its own."
                )
        if self.checkpoint and self.strategy not in RESUMABLE:
            raise SettingsError(
                f"Run config: checkpoint needs one of the strategies {', '.join(RESUMABLE)}; Flower's {self.strategy} "
                "cannot be resumed."
            )

    @property
    def compared(self) -> tuple[str, ...]:
        """The strategies that `compare` names."""
        return tuple(name.strip() for name in self.compare.split(",") if name.strip())
