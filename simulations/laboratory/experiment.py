"""What an experiment is: measurements, and how they are shown beside the paper's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.ledger import Ledger, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_RUN = "not run yet at this size"


@dataclass(frozen=True)
class Table:
    """Text for the results page.

    Attributes
    ----------
    title
        What it shows.
    columns
        Headings.
    rows
        One string per column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A figure for the results page.

    Attributes
    ----------
    name
        Of its file, without a suffix.
    caption
        What it shows.
    figure
        The drawing.
    """

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Attributes
    ----------
    name
        On the command line.
    title
        For people.
    source
        The paper's figures and tables.
    about
        What is done, in a sentence or two.
    measure
        Makes the measurements that are not in the ledger yet.
    tables
        Shows measurements; it is given those of one scale, possibly none.
    pictures
        Draws measurements.
    findings
        Sentences on what the measurements say, each derived from them.
    """

    name: str
    title: str
    source: str
    about: str
    measure: Callable[[Laboratory, Ledger], None]
    tables: Callable[[Sequence[Record]], Iterator[Table]]
    pictures: Callable[[Sequence[Record]], Iterator[Picture]]
    findings: Callable[[Sequence[Record]], Iterator[str]]


def nothing(_records: Sequence[Record]) -> Iterator[str]:
    """No findings."""
    return iter(())


def select(records: Sequence[Record], **about: object) -> list[Record]:
    """The records whose description has these values."""
    return [r for r in records if all(r.about.get(name) == value for name, value in about.items())]


def networks(records: Sequence[Record]) -> list[str]:
    """Names of the networks that were measured, in the order of their first record."""
    return list(dict.fromkeys(str(record.about["network"]) for record in records))


def percent(value: float, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return f"{100 * value:.{digits}f} %"


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Mean, and standard deviation where there are several values."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return form.format(mean)
    deviation = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return f"{form.format(mean)} ± {form.format(deviation)}"


def spread_percent(values: Sequence[float]) -> str:
    """The same in percent."""
    return spread([100 * value for value in values], "{:.2f}") + " %"
