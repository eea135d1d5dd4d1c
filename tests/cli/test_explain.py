from __future__ import annotations

import json
from pathlib import Path

import pytest

from c2m3_fl.cli import main
from c2m3_fl.symmetry import PermutationSpec
from tests.cli import networks

NETWORK = f"{networks.__name__}:embedding"


def test_prints_the_table_and_writes_the_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "spec.json"
    assert main(["explain", NETWORK, "--input", "2,5:7", "--output", str(target)]) == 0
    spec = PermutationSpec.from_json(target.read_text())
    assert dict(spec.groups) == {"0.out": 4, "1.out": 6}
    assert capsys.readouterr().out.startswith(spec.explain())
    assert main(["explain", NETWORK, "--input", "2,5:7", "--output", str(target)]) == 2
    assert "exists; --force" in capsys.readouterr().err


def test_json_is_the_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", NETWORK, "--input", "2,5:7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == {"0.out": 4, "1.out": 6}


def test_factories_take_plain_arguments_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text(
        "from dataclasses import dataclass\nfrom torch import nn\n\n\n@dataclass\nclass Options:\n    width: int\n\n\n"
        "def net(width=4):\n    width = Options(width).width\n"
        "    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))\n"
    )
    for network in (f"{networks.PERCEPTRON}(hidden=5)", f"{tmp_path / 'model.py'}:net(width=5)"):
        shape = "1,6" if network.startswith("tests") else "1,2"
        assert main(["explain", network, "--input", shape, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["groups"] == {"0.out": 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torchvision", "--input", "1,3"], "names no factory"),
        (["no_such_module:make", "--input", "1,3"], "cannot make a network"),
        (["no/such/file.py:make", "--input", "1,3"], "cannot make a network"),
        ([f"{networks.__name__}:missing", "--input", "1,3"], "missing"),
        ([f"{networks.__name__}:number", "--input", "1,3"], "makes a int"),
        ([f"{networks.__name__}:failing", "--input", "1,3"], "no such weights"),
        ([f"{networks.PERCEPTRON}(hidden=open('x'))", "--input", "1,3"], "names no factory"),
        ([f"{networks.PERCEPTRON}(5)", "--input", "1,3"], "names no factory"),
        ([f"{networks.PERCEPTRON}(width=5)", "--input", "1,3"], "width"),
        ([NETWORK, "--input", "1,x"], "is no shape"),
        ([NETWORK, "--input", "0,3"], "is no shape"),
        ([NETWORK, "--input", "2,5"], "of shape (2, 5)"),
        ([NETWORK], "--input SHAPE"),
    ],
)
def test_bad_arguments_are_named_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
