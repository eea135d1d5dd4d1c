"""The results page: `docs/results.md` and one self-contained HTML file, made from the results that lie in JSON files."""

from __future__ import annotations

import argparse
import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulations.laboratory.drawing import save
from simulations.laboratory.experiment import NOT_RUN, Experiment, Table
from simulations.laboratory.results import Results, read_results

_SCALES = ("paper", "cpu")
_TITLE = "The paper, reproduced"
_INTRODUCTION = (
    "Every table and figure of C2M3 (Crisostomi et al., NeurIPS 2024), run by one command each, with the paper's own "
    "numbers beside ours. This page is made from `docs/results/*.json` by `python -m simulations report`; nothing on it "
    "is written by hand.",
    "Any of them is run again by `python -m simulations NAME --scale cpu --data-dir DIR`, and all by the name `paper`. "
    "Networks and measurements are kept in a cache: what was interrupted goes on where it was.",
    "The two sizes are `cpu` (narrow networks, few epochs: what a laptop does) and `paper` (the "
    "paper's networks and epochs, for a GPU). Accuracies of different sizes cannot be compared with one another or with "
    "the paper's; the order of the methods can.",
)


@dataclass
class _Section:
    """A part of the page: text, tables and figures, in order."""

    title: str
    level: int
    parts: list[str | Table | tuple[str, Path]] = field(default_factory=list)


def build(experiments: Sequence[Experiment], results: Path, page: Path) -> None:
    """Write the page.

    Parameters
    ----------
    experiments
        In the order of the page.
    results
        Folder of the JSON files.
    page
        The Markdown file; its HTML lies beside it, and figures in a folder beside it.
    """
    figures = page.parent / "figures"
    sections = [_Section(_TITLE, 1, list(_INTRODUCTION))]
    for experiment in experiments:
        sections.append(_Section(f"{experiment.title} ({experiment.source})", 2, [experiment.about]))
        found = [r for scale in _SCALES if (r := read_results(results, experiment.name, scale)) is not None]
        sections += [_of_scale(experiment, each, figures) for each in found]
        if not found:
            sections.append(_not_run(experiment))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_markdown(sections, page.parent), encoding="utf-8")
    page.with_suffix(".html").write_text(_html(sections), encoding="utf-8")


def _not_run(experiment: Experiment) -> _Section:
    section = _Section("Not run yet", 3, [f"{NOT_RUN.capitalize()}: `python -m simulations {experiment.name}`."])
    section.parts += list(experiment.tables(()))
    return section


def _of_scale(experiment: Experiment, results: Results, figures: Path) -> _Section:
    section = _Section(f"Scale {results.scale}", 3)
    section.parts.append(_set_up(experiment, results))
    if unknown := [name for name in results.networks if name not in results.code]:
        section.parts.append(
            f"**Provisional** ({', '.join(unknown)}): measured while the matchers were being changed, by a version of the "
            "code that was not recorded. To be measured again before any of it is relied on."
        )
    if findings := list(experiment.findings(results.records)):
        section.parts += ["What was found:", *(f"- {finding}" for finding in findings)]
    section.parts += list(experiment.tables(results.records))
    for picture in experiment.pictures(results.records):
        path = figures / f"{picture.name}-{results.scale}.png"
        save(picture.figure, path)
        section.parts.append((picture.caption, path))
    return section


def _set_up(experiment: Experiment, results: Results) -> str:
    hardware = ", ".join(sorted({record.hardware for record in results.records}))
    seconds = sum(record.seconds for record in results.records)
    packages = results.environment["packages"]
    return (
        f"`python -m simulations {experiment.name} --scale {results.scale}`. Hardware: {hardware}; torch "
        f"{packages['torch']}. {len(results.records)} measurements in {seconds:.0f} s, without training. Networks: "
        + "; ".join(f"{name}: {_recipe(config)}" for name, config in results.networks.items())
        + "".join(f"; code of {name}: {code}" for name, code in results.code.items())
        + "."
    )


def _recipe(config: Mapping[str, Any]) -> str:
    recipe = config["recipe"]
    images = f"{config['train_size']:,} training images" if config["train_size"] else "all training images"
    width = "" if config["model"] == "mlp" and config["width"] == 1 else f" {config['width']:g}x"
    return (
        f"{config['model']}{width} on {config['dataset']}, {images}, {recipe['epochs']} epochs, {recipe['optimizer']}, "
        f"batch {recipe['batch_size']}, learning rate {recipe['learning_rate']:g}, "
        f"weight decay {recipe['weight_decay']:g}, {recipe['precision']}"
    )


def _markdown(sections: Sequence[_Section], folder: Path) -> str:
    blocks: list[str] = []
    for section in sections:
        blocks.append(f"{'#' * section.level} {section.title}")
        for part in section.parts:
            if isinstance(part, Table):
                blocks += [f"**{part.title}**", "\n".join(_markdown_table(part))]
            elif isinstance(part, tuple):
                blocks += [f"![{part[0]}]({part[1].relative_to(folder).as_posix()})", f"*{part[0]}*"]
            else:
                blocks.append(part)
    # The items of a list follow one another without a blank line.
    return "\n\n".join(blocks).replace("\n\n- ", "\n- ") + "\n"


def _markdown_table(table: Table) -> Iterator[str]:
    for number, row in enumerate((table.columns, *table.rows)):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        if number == 0:
            yield "|" + " --- |" * len(row)


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-size:.9em}"
    "th,td{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:left;font-variant-numeric:tabular-nums}"
    "img{max-width:100%}figcaption{color:#555;font-size:.9em}figure{margin:1rem 0}code{background:#f3f3f3}"
    "h2{margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}"
)


def _html(sections: Sequence[_Section]) -> str:
    body: list[str] = []
    for section in sections:
        body.append(f"<h{section.level}>{html.escape(section.title)}</h{section.level}>")
        for part in section.parts:
            if isinstance(part, Table):
                body.append(_html_table(part))
            elif isinstance(part, tuple):
                data = base64.b64encode(part[1].read_bytes()).decode()
                caption = html.escape(part[0])
                body.append(
                    f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                    f"<figcaption>{caption}</figcaption></figure>"
                )
            else:
                body.append(f"<p>{_inline(part)}</p>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_TITLE}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _inline(text: str) -> str:
    """Markdown's code marks as HTML."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<p><b>{html.escape(table.title)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m simulations report``."""
    result = argparse.ArgumentParser(prog="python -m simulations report", description=__doc__)
    result.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of the JSON files")
    result.add_argument("--page", type=Path, default=Path("docs/results.md"), help="the page; its HTML goes beside it")
    return result
