"""The protocol of an experiment: what it needs, its cells, how they are measured, summarised and drawn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from simulations.laboratory.ledger import Cell, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from simulations.laboratory.laboratory import Laboratory

NOT_RUN = "not run yet at this size"


@dataclass(frozen=True)
class Table:
    """Text for a page.

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
    """A figure for a page.

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
class Claim:
    """What a source says, and whether it was so here.

    Attributes
    ----------
    statement
        The source's, in a sentence.
    verdict
        In words of the table of claims.
    here
        The numbers that the verdict is drawn from.
    """

    statement: str
    verdict: Literal["held", "held in part", "not held"]
    here: str

    @classmethod
    def judged(cls, statement: str, cases: Iterable[bool], here: str) -> Claim:
        """Held where every case agrees, in part where some do."""
        found = list(cases)
        verdict: Literal["held", "held in part", "not held"] = "held in part" if any(found) else "not held"
        return cls(statement, "held" if all(found) else verdict, here)


def nothing(_records: Sequence[Record]) -> Iterator[str]:
    """No findings."""
    return iter(())


def no_claims(_records: Sequence[Record]) -> Iterator[Claim]:
    """No claims."""
    return iter(())


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes
    ----------
    name
        On the command line.
    title
        For people.
    source
        The figures, tables or sections that it repeats; empty where it is this project's own.
    about
        What is done, in a sentence or two.
    cells
        What there is to measure in a laboratory, each cell with its needs. Making cells reads no data.
    tables
        Shows measurements; it is given those of one scale, possibly none.
    pictures
        Draws measurements.
    findings
        Sentences on what the measurements say, each derived from them.
    claims
        The source's claims that the measurements bear on.
    whole
        Whether pictures, findings and claims need every cell of a network; then they are given no other networks.
    page
        Where it is shown: ``docs/PAGE.md``.
    """

    name: str
    title: str
    source: str
    about: str
    cells: Callable[[Laboratory], Iterator[Cell]]
    tables: Callable[[Sequence[Record]], Iterator[Table]]
    pictures: Callable[[Sequence[Record]], Iterator[Picture]]
    findings: Callable[[Sequence[Record]], Iterator[str]] = nothing
    claims: Callable[[Sequence[Record]], Iterator[Claim]] = no_claims
    whole: bool = True
    page: str = "results"

    def complete(self, records: Sequence[Record], cells: Iterable[Cell]) -> list[Record]:
        """The records that pictures, findings and claims can be made of."""
        if not self.whole:
            return list(records)
        known = {str(sorted(record.about.items())) for record in records}
        lacking = {cell.about.get("network") for cell in cells if str(sorted(cell.about.items())) not in known}
        return [record for record in records if record.about.get("network") not in lacking]


def networks(records: Sequence[Record]) -> list[str]:
    """Names of the networks that were measured, in the order of their first record."""
    return list(dict.fromkeys(str(record.about["network"]) for record in records))


def percent(value: float, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return f"{100 * value:.{digits}f} %"


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Mean, and standard deviation where there are several values."""
    mean = form.format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.replace('+', '').format(statistics.stdev(values))}"


def spread_percent(values: Sequence[float]) -> str:
    """The same in percent."""
    return spread([100 * value for value in values], "{:.2f}") + " %"
