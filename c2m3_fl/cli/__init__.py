"""The command line ``c2m3``: one command a file."""

from c2m3_fl.cli.main import main

__all__ = ["main"]
