"""Sections of text, tables and figures as Markdown and as HTML; blocks within pages written by people."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simulations.laboratory.experiment import Table

Part = str | Table | tuple[str, Path]
"""A paragraph in Markdown, a table, or a figure's caption and file."""


@dataclass
class Section:
    """A part of a page: text, tables and figures, in order, under a heading."""

    title: str
    level: int
    parts: list[Part] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """By which links find it."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def replace_block(page: Path, name: str, text: str, title: str) -> None:
    """Replace what lies between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    Parameters
    ----------
    page
        Markdown. Without the marks, or if it does not exist, it gets them at its end.
    name
        Of the block.
    text
        What to put there.
    title
        Heading of a page that does not exist yet.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before = page.read_text(encoding="utf-8") if page.is_file() else f"# {title}\n"
    if begin not in before:
        before = f"{before.rstrip()}\n\n{begin}\n{end}\n"
    head, _, rest = before.partition(begin)
    tail = rest.partition(end)[2]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{head}{begin}\n{text.rstrip()}\n{end}{tail}", encoding="utf-8")


def as_markdown(sections: Sequence[Section], folder: Path) -> str:
    """Sections in Markdown, for a page in a folder."""
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
    "body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:1rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:.9em}.wide{overflow-x:auto;margin:.5rem 0 1.5rem}"
    "th,td{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:left;font-variant-numeric:tabular-nums}"
    "img{max-width:100%;height:auto}figcaption{color:#555;font-size:.9em}figure{margin:1rem 0}"
    "code{background:#f3f3f3;overflow-wrap:anywhere}details{border-top:1px solid #ccc;padding:.6rem 0}"
    "summary{font-size:1.3em;font-weight:600;cursor:pointer}"
)


def as_html(sections: Sequence[Section], folder: Path) -> str:
    """Sections as a page in a folder: a title, an opening section, contents, and the others folded up.

    Figures are loaded when they come into view.
    """
    title, opening, *others = sections
    body = [f"<h1>{html.escape(title.title)}</h1>", f"<h2>{html.escape(opening.title)}</h2>"]
    body += [_html_part(part, folder) for part in (*title.parts, *opening.parts)]
    body.append(_contents(others))
    for number, section in enumerate(others):
        if section.level == 2:
            # A link to what is inside unfolds it.
            end = "</div></details>" if number else ""
            body.append(f"{end}<details><summary>{html.escape(section.title)}</summary>")
            body.append(f'<div id="{section.anchor}">')
        else:
            body.append(f"<h{section.level}>{html.escape(section.title)}</h{section.level}>")
        body += [_html_part(part, folder) for part in section.parts]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title.title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>\n'
        + "\n".join(body)
        + ("\n</div></details>" if others else "")
        + "\n</body></html>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(
        f'<li><a href="#{each.anchor}">{html.escape(each.title)}</a></li>' for each in sections if each.level == 2
    )
    return f"<nav><ul>{links}</ul></nav>"


def _html_part(part: Part, folder: Path) -> str:
    if isinstance(part, Table):
        return _html_table(part)
    if isinstance(part, str):
        return f"<p>{_inline(part)}</p>"
    caption, path = html.escape(part[0]), part[1]
    width, height = _png_size(path)
    return (
        f'<figure><img loading="lazy" width="{width}" height="{height}" alt="{caption}" '
        f'src="{path.relative_to(folder).as_posix()}"><figcaption>{caption}</figcaption></figure>'
    )


def _png_size(path: Path) -> tuple[int, int]:
    """Width and height, which a browser needs to keep the place of a figure that it has not loaded."""
    head = path.read_bytes()[16:24]
    return int.from_bytes(head[:4]), int.from_bytes(head[4:])


def _inline(text: str) -> str:
    """Markdown's code and bold marks as HTML."""
    pieces = html.escape(text).split("`")
    marked = "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", marked)


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return (
        f'<p><b>{html.escape(table.title)}</b></p><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
