"""Measurements, each written down as soon as it is made, so that an interrupted run resumes where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes
    ----------
    about
        What was measured: plain values by which tables and figures choose it.
    values
        What came out: plain values.
    seconds
        Wall time.
    hardware
        What ran it.
    depends
        Short hash of everything else that the result depends on: endpoints, matcher and sizes.
    """

    about: Mapping[str, Any]
    values: Mapping[str, Any]
    seconds: float
    hardware: str
    depends: str


class Ledger:
    """The measurements of one experiment at one scale: a file of JSON lines that only grows.

    Parameters
    ----------
    path
        The file.
    hardware
        What runs the measurements, in words.
    """

    def __init__(self, path: Path, hardware: str) -> None:
        self.path = path
        self.hardware = hardware
        self._known: dict[str, Record] = {}
        self._asked: dict[str, None] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                record = Record(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue  # the last line of a run that was killed
            self._known[_key(record.about, record.depends)] = record

    def measure(
        self, about: Mapping[str, Any], depends: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]
    ) -> Record:
        """The measurement of that description, made now if it is not written down.

        Parameters
        ----------
        about
            What is measured; plain values.
        depends
            Everything else that determines the result; plain values.
        compute
            Makes the measurement.
        """
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        key = _key(about, digest)
        self._asked[key] = None
        if key not in self._known:
            started = time.perf_counter()
            values = dict(compute())
            seconds = round(time.perf_counter() - started, 3)
            record = Record(dict(about), json.loads(json.dumps(values)), seconds, self.hardware, digest)
            self._append(record)
            self._known[key] = record
            print(f"{self.path.stem}: {_short(about)} -> {_short(values)} ({seconds:.1f} s)", flush=True)
        return self._known[key]

    def records(self) -> list[Record]:
        """What was asked for since this ledger was opened, in that order."""
        return [self._known[key] for key in self._asked if key in self._known]

    def _append(self, record: Record) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # A line that a killed run left unfinished must not swallow the next one.
            file.write(("\n" if file.tell() else "") + json.dumps(asdict(record)))
            file.flush()


def _key(about: Mapping[str, Any], digest: str) -> str:
    return f"{digest} {json.dumps(about, sort_keys=True)}"


def _short(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items() if _is_plain(v))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)
