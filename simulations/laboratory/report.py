"""Pages made of results: `docs/results.md` with its HTML, and blocks within pages whose words are written by people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from simulations.laboratory.drawing import save
from simulations.laboratory.endpoints import EndpointStore
from simulations.laboratory.experiment import NOT_RUN, Experiment, Table
from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.ledger import Ledger, Record
from simulations.laboratory.pages import Part, Section, as_html, as_markdown, replace_block
from simulations.laboratory.scales import SCALES

_WHOLE = "results"
_SCALES = ("paper", "cpu")
_TITLE = "The paper, reproduced"
_INTRODUCTION = (
    "Every table and figure of C2M3 (Crisostomi et al., NeurIPS 2024), run by one command each, with the paper's own "
    "numbers beside ours. This page is made from `docs/results/*.jsonl` by `python -m simulations report`; nothing on it "
    "is written by hand.",
    "Any of them is run again by `python -m simulations NAME --scale cpu --data-dir DIR`, and all by the name `paper`. "
    "What was interrupted goes on where it was, and what was measured by other code, or on other networks, than today's "
    "is measured again; the page says of which figures that is so.",
    "The two sizes are `cpu` (narrow networks, few epochs: what a laptop does) and `paper` (the "
    "paper's networks and epochs, for a GPU). Accuracies of different sizes cannot be compared with one another or with "
    "the paper's; the order of the methods can.",
)


_REASONS = {
    "plan": "another plan",
    "networks": "networks of another recipe",
    "data": "other data",
    "sizes": "other numbers of images",
    "code": "other code",
}
"""Why a measurement is stale, the first that applies."""


def ledger_path(folder: Path, experiment: Experiment, scale: str) -> Path:
    """Where an experiment's measurements are."""
    return folder / f"{experiment.name}-{scale}.jsonl"


@dataclass
class _Measured:
    """What there is of an experiment at a scale.

    Attributes
    ----------
    scale
        Its name.
    records
        The measurements to show.
    complete
        Those that pictures, findings and claims are made of.
    stale
        By reason and network, how many are stale.
    """

    scale: str
    records: list[Record] = field(default_factory=list)
    complete: list[Record] = field(default_factory=list)
    stale: dict[str, Counter[str]] = field(default_factory=dict)


def measured(experiment: Experiment, scale: str, results: Path) -> _Measured | None:
    """The measurements to show; None where there are none.

    What is stale is shown, and said to be so, as long as nothing current takes its place: of a network with current
    measurements only these are shown.
    """
    ledger = Ledger(ledger_path(results, experiment, scale))
    # No data are read: the code, the networks' recipe and the sizes decide.
    laboratory = Laboratory(SCALES[scale](), EndpointStore(Path(), Path(), torch.device("cpu")))
    cells = {str(sorted(cell.about.items())): cell for cell in experiment.cells(laboratory)}
    found = _Measured(scale)
    judged: list[tuple[str, Record, str]] = []
    for record in ledger.records():
        cell = cells.get(str(sorted(record.about.items())))
        changed = ["plan"] if cell is None else record.changed(cell.depends)
        reason = next(
            (words for name, words in _REASONS.items() if name in changed), "other options" if changed else ""
        )
        judged.append((str(record.about.get("network", "")), record, reason))
    current = {network for network, _, reason in judged if not reason}
    for network, record, reason in judged:
        if reason and network in current:
            continue
        found.records.append(record)
        if reason:
            found.stale.setdefault(reason, Counter())[network] += 1
    found.complete = experiment.complete(found.records, cells.values())
    return found if found.records else None


def write_pages(experiments: Sequence[Experiment], results: Path, docs: Path) -> list[Path]:
    """Write all pages.

    Parameters
    ----------
    experiments
        In the order of the pages.
    results
        Folder of the measurements.
    docs
        Folder of the pages; figures go into a folder there.

    Returns
    -------
    list of Path
        The pages.
    """
    found = {
        experiment.name: [m for scale in _SCALES if (m := measured(experiment, scale, results)) is not None]
        for experiment in experiments
    }
    docs.mkdir(parents=True, exist_ok=True)
    whole = [each for each in experiments if each.page == _WHOLE]
    sections = [Section(_TITLE, 1), _claims(whole, found), Section("About this page", 2, list(_INTRODUCTION))]
    for experiment in whole:
        sections.append(Section(_heading(experiment), 2, [experiment.about]))
        sections += [_of_scale(experiment, each, docs / "figures") for each in found[experiment.name]]
        if not found[experiment.name]:
            missing = f"{NOT_RUN.capitalize()}: `python -m simulations {experiment.name}`."
            sections.append(Section("Not run yet", 3, [missing, *experiment.tables(())]))
    page = docs / f"{_WHOLE}.md"
    page.write_text(as_markdown(sections, docs), encoding="utf-8")
    page.with_suffix(".html").write_text(as_html(sections, docs), encoding="utf-8")
    pages = [page, page.with_suffix(".html")]
    for experiment in experiments:
        for each in found[experiment.name] if experiment.page != _WHOLE else ():
            page = docs / f"{experiment.page}.md"
            section = _of_scale(experiment, each, docs / "figures")
            replace_block(page, f"{experiment.name}-{each.scale}", as_markdown([section], docs), experiment.title)
            pages.append(page)
    return list(dict.fromkeys(pages))


def as_text(experiment: Experiment, records: Sequence[Record], laboratory: Laboratory) -> str:
    """What was found and its tables, without figures."""
    complete = experiment.complete(records, experiment.cells(laboratory))
    parts: list[Part] = [f"- {claim.statement}: {claim.verdict}. {claim.here}" for claim in experiment.claims(complete)]
    parts += [f"- {finding}" for finding in experiment.findings(complete)]
    return as_markdown([Section(experiment.title, 2, [*parts, *experiment.tables(records)])], Path())


def _heading(experiment: Experiment) -> str:
    return f"{experiment.title} ({experiment.source})" if experiment.source else experiment.title


def _claims(experiments: Sequence[Experiment], found: dict[str, list[_Measured]]) -> Section:
    rows = []
    for experiment in experiments:
        judged = [(m.scale, claim, m) for m in found[experiment.name] for claim in experiment.claims(m.complete)]
        for scale, claim, m in judged:
            stale = " (stale)" if m.stale else ""
            rows.append((claim.statement, experiment.source, claim.verdict + stale, f"{claim.here} [{scale}]"))
    rows += [(statement, source, "could not be tried here", why) for statement, source, why in UNTRIED]
    return Section(
        "The paper's claims", 2, [Table("What held here", ("claim", "source", "verdict", "here"), tuple(rows))]
    )


UNTRIED = (
    (
        "The order of Table 1 on EMNIST letters",
        "Table 1",
        "torchvision downloads the letters from a host that cannot be reached here",
    ),
    ("Merged accuracy of ResNet20 at widths of 8 and 16", "Figure 8", "needs a GPU"),
)
"""What the paper claims and nobody could try: statement, source, why."""


def _of_scale(experiment: Experiment, found: _Measured, figures: Path) -> Section:
    section = Section(f"Scale {found.scale}", 3, [_set_up(experiment, found)])
    section.parts += list(_staleness(found))
    if findings := list(experiment.findings(found.complete)):
        section.parts += ["What was found:", *(f"- {finding}" for finding in findings)]
    section.parts += list(experiment.tables(found.records))
    for picture in experiment.pictures(found.complete):
        path = figures / f"{picture.name}-{found.scale}.png"
        save(picture.figure, path)
        section.parts.append((picture.caption, path))
    return section


def _set_up(experiment: Experiment, found: _Measured) -> str:
    hardware = ", ".join(sorted({record.hardware for record in found.records}))
    seconds = sum(record.seconds for record in found.records)
    networks: dict[str, dict[str, None]] = {}
    for record in found.records:
        if "networks" in record.depends:
            networks.setdefault(str(record.about["network"]), {})[str(record.depends["networks"])] = None
    listed = "; ".join(f"{name}: {' / '.join(abouts)}" for name, abouts in networks.items())
    return (
        f"`python -m simulations {experiment.name} --scale {found.scale}`. Hardware: {hardware}. "
        f"{len(found.records)} measurements in {seconds:.0f} s, without training."
        + (f" Networks: {listed}." if listed else "")
    )


def _staleness(found: _Measured) -> Iterator[str]:
    for reason, counts in found.stale.items():
        listed = ", ".join(f"{network} ({count})" if network else str(count) for network, count in counts.items())
        yield f"**Stale,** since made with {reason} than today's: {listed}."
