"""What a command is doing, on a terminal: one line that is rewritten, and wiped at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_WIDTH = 78
_PERIOD = 0.5


class Progress:
    """A line with what is being done and for how long; nothing where the stream is no terminal.

    Parameters
    ----------
    stream
        Where to write; None for standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._shown = self._stream.isatty()
        self._note = ""

    def note(self, text: str) -> None:
        """Add to the present line, for example which file is being read."""
        self._note = text

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Show the text and the seconds since, while the block runs."""
        self._note = ""
        if not self._shown:
            yield
            return
        done = threading.Event()
        clock = threading.Thread(target=self._tick, args=(text, done), daemon=True)
        clock.start()
        try:
            yield
        finally:
            done.set()
            clock.join()
            self._write("")

    def _tick(self, text: str, done: threading.Event) -> None:
        started = time.monotonic()
        while True:
            note = f", {self._note}" if self._note else ""
            self._write(f"{text} ... {time.monotonic() - started:.0f} s{note}")
            if done.wait(_PERIOD):
                return

    def _write(self, line: str) -> None:
        self._stream.write(f"\r{line[:_WIDTH]:<{_WIDTH}}\r{line[:_WIDTH]}")
        self._stream.flush()
