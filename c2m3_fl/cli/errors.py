"""Errors of the command line: one line each, and an exit status."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

_LONGEST = 500


class InputError(click.ClickException):
    """A file, a module or an option that cannot be used; the message names it and the way out."""

    exit_code = 2


def one_line(text: str) -> str:
    """The text without line breaks, and cut where nobody reads on."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


@contextmanager
def named(files: Sequence[Path]) -> Iterator[None]:
    """What the library says of client 3 is an error of the third file after the first, by its name.

    All errors of the library for bad input are ``ValueError``.
    """
    try:
        yield
    except ValueError as error:
        raise InputError(
            re.sub(r"\b(?:client|endpoint) (\d+)\b", lambda found: _name(found, files), str(error))
        ) from error


def _name(found: re.Match[str], files: Sequence[Path]) -> str:
    position = int(found.group(1))
    return str(files[position]) if position < len(files) else found.group()
