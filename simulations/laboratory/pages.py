"""Pages written by people, with blocks written by programs between marks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def replace_block(page: Path, name: str, lines: Iterable[str], title: str) -> None:
    """Replace what lies between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    Parameters
    ----------
    page
        Markdown. Without the marks, or if it does not exist, it gets them at its end.
    name
        Of the block.
    lines
        What to put there.
    title
        Heading of a page that does not exist yet.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# {title}\n"
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    head, _, rest = text.partition(begin)
    tail = rest.partition(end)[2]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([head + begin, *lines, end + tail]), encoding="utf-8")
