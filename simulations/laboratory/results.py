"""Results as files: one of JSON for each experiment and scale, from which the results page is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulations.app.records import Environment
from simulations.laboratory.laboratory import code_fingerprint
from simulations.laboratory.ledger import Record

if TYPE_CHECKING:
    from simulations.laboratory.experiment import Experiment
    from simulations.laboratory.laboratory import Laboratory


@dataclass(frozen=True)
class Results:
    """What an experiment measured at a scale.

    Attributes
    ----------
    experiment, scale
        Their names.
    records
        The measurements.
    networks
        Per network that was measured, the endpoints' configuration but for the seed.
    environment
        Packages and machine of the last run.
    code
        Per network, the fingerprint of the source that measured it; those measured before it was recorded are absent.
    """

    experiment: str
    scale: str
    records: tuple[Record, ...]
    networks: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]
    code: Mapping[str, str] = field(default_factory=dict)


def results_path(folder: Path, experiment: str, scale: str) -> Path:
    """Where the results are."""
    return folder / f"{experiment}-{scale}.json"


def read_results(folder: Path, experiment: str, scale: str) -> Results | None:
    """The results, or None where there are none."""
    path = results_path(folder, experiment, scale)
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    records = tuple(Record(**record) for record in content.pop("records"))
    return Results(records=records, **content)


def write_results(folder: Path, experiment: Experiment, laboratory: Laboratory, records: Sequence[Record]) -> Path:
    """Write what a run measured; results of networks that it did not work on are kept."""
    scale = laboratory.scale
    before = read_results(folder, experiment.name, scale.name)
    measured = {str(record.about["network"]) for record in records}
    kept = [r for r in before.records if r.about["network"] not in measured] if before else []
    networks = dict(before.networks) if before else {}
    for name in measured:
        networks[name] = {k: v for k, v in asdict(scale.networks[name]).items() if k != "seed"}
    code = {**(before.code if before else {}), **dict.fromkeys(measured, code_fingerprint())}
    environment = asdict(Environment())
    path = results_path(folder, experiment.name, scale.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"    {json.dumps(_rounded(asdict(record)))}" for record in [*kept, *records])
    head = {
        "experiment": experiment.name,
        "scale": scale.name,
        "networks": networks,
        "code": code,
        "environment": environment,
    }
    text = json.dumps(head, indent=2)[:-2] + f',\n  "records": [\n{lines}\n  ]\n}}\n'
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _rounded(value: Any) -> Any:
    """`value` with floats of six significant digits, which is more than any of them is good for."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
