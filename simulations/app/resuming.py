"""A run that can be killed and started again: the folder that the run config's ``checkpoint`` names."""

from __future__ import annotations

import json
from pathlib import Path

from clients.settings import SettingsError
from simulations.app.records import write_json
from simulations.app.settings import SimulationSettings

_STATE, _CONFIG = "c2m3.safetensors", "run-config.json"
# A run may go on for longer, with data that have moved, on another machine; all else is another run.
_MAY_CHANGE = frozenset(
    (
        "num-server-rounds",
        "data-dir",
        "download",
        "output",
        "checkpoint",
        "client-device",
        "server-device",
        "client-threads",
        "server-threads",
    )
)


def claim(settings: SimulationSettings) -> Path | None:
    """The file for a run's checkpoints, in a folder that remembers whose they are.

    Returns
    -------
    Path or None
        None where the run config asks for no checkpoint.

    Raises
    ------
    SettingsError
        If the folder holds the checkpoint of a run with another run config.
    """
    if not settings.checkpoint:
        return None
    folder = Path(settings.checkpoint)
    state, config = folder / _STATE, folder / _CONFIG
    ours = {key: value for key, value in settings.run_config().items() if key not in _MAY_CHANGE}
    if not state.exists():
        write_json(config, ours)
        return state
    theirs = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if wrong := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        raise SettingsError(
            f"Run config: {folder} holds a run that differs in {', '.join(wrong)}. Start that one again to go on with "
            "it, or name another folder."
        )
    return state
