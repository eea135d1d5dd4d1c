from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

import c2m3_fl
from c2m3_fl.cli import main
from c2m3_fl.cli.main import commands
from c2m3_fl.cli.progress import Progress
from tests.cli.networks import PERCEPTRON, planted


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert c2m3_fl.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(commands.commands))
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"c2m3 {command}" in capsys.readouterr().out.partition("Examples:")[2]


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["merge"], ["merge", "--no-such-option"]])
def test_usage_is_an_error_of_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "--help" in captured.err


def test_faults_of_the_program_are_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr("c2m3_fl.cli.merge.aggregate", fail)
    arguments = ["merge", PERCEPTRON, *planted(tmp_path), "--input", "1,6", "-o", str(tmp_path / "m.pt")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("c2m3: KeyError")
    assert error.count("\n") == 1
    monkeypatch.setenv("C2M3_DEBUG", "1")
    assert main(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals() -> None:
    quiet, terminal = io.StringIO(), _Terminal()
    for stream in (quiet, terminal):
        progress = Progress(stream)
        with progress.stage("merging"):
            progress.note("reading a.pt")
            time.sleep(0.7)
    assert quiet.getvalue() == ""
    assert "merging ... " in terminal.getvalue()
    assert "reading a.pt" in terminal.getvalue()
    assert terminal.getvalue().rpartition("\r")[2] == ""  # wiped
