"""Measurements, each written down as soon as it is made, so that an interrupted run resumes where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One measurement to make.

    Attributes
    ----------
    about
        What is measured: plain values by which tables and figures choose it, unlike those of any other cell.
    depends
        Everything else that determines the result, the code included: plain values.
    needs
        Names of the data sets without which it cannot be made.
    measure
        Makes it; returns plain values.
    """

    about: Mapping[str, Any]
    depends: Mapping[str, Any]
    needs: tuple[str, ...]
    measure: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Record:
    """One measurement that was made.

    Attributes
    ----------
    about, depends
        See `Cell`; `depends` names the content of the data sets as well.
    values
        What came out: plain values.
    seconds
        Wall time.
    hardware
        What ran it.
    """

    about: Mapping[str, Any]
    values: Mapping[str, Any]
    seconds: float
    hardware: str
    depends: Mapping[str, Any]

    def changed(self, depends: Mapping[str, Any]) -> list[str]:
        """Names of what it depended on and is different now; what `depends` does not name is not asked for."""
        return [name for name, value in depends.items() if self.depends.get(name) != _plain(value)]


class Ledger:
    """The measurements of one experiment at one scale: a file of JSON lines, of which the last one about a thing counts.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Record] = {}
        self._lines = 0
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            self._lines += 1
            try:
                record = Record(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue  # the last line of a run that was killed
            self._known[_key(record.about)] = record

    def find(self, about: Mapping[str, Any]) -> Record | None:
        """What was measured of that description, by whatever code."""
        return self._known.get(_key(about))

    def measure(self, cell: Cell, depends: Mapping[str, Any], hardware: str) -> Record:
        """The measurement of a cell, made now if it is not written down or if anything has changed since."""
        known = self.find(cell.about)
        if known is not None and not known.changed(depends):
            return known
        started = time.perf_counter()
        values = _rounded(cell.measure())
        seconds = round(time.perf_counter() - started, 3)
        record = Record(dict(cell.about), values, seconds, hardware, _plain(depends))
        self._known[_key(cell.about)] = record
        self._append(record)
        print(f"{self.path.stem}: {_short(cell.about)} -> {_short(values)} ({seconds:.1f} s)", flush=True)
        return record

    def records(self) -> list[Record]:
        """Everything that is written down, in the order in which it was first measured."""
        return list(self._known.values())

    def tidy(self) -> None:
        """Drop what was measured again since."""
        if self._lines > len(self._known):
            partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            partial.write_text("".join(_line(record) for record in self._known.values()), encoding="utf-8")
            os.replace(partial, self.path)
            self._lines = len(self._known)

    def _append(self, record: Record) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            # A line that a killed run left unfinished must not swallow the next one.
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.write(b"\n")
            file.write(_line(record).encode())
        self._lines += 1


def select(records: Sequence[Record], **about: object) -> list[Record]:
    """The records whose description has these values."""
    return [r for r in records if all(r.about.get(name) == value for name, value in about.items())]


def _key(about: Mapping[str, Any]) -> str:
    return json.dumps(about, sort_keys=True)


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _rounded(value: Any) -> Any:
    """`value` with floats of six significant digits, which is more than any of them is good for."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


def _short(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items() if _is_plain(v))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)
