from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from c2m3_fl.cli import main
from c2m3_fl.symmetry.spec import PermutationSpec


def network() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def number() -> int:
    return 3


def test_explain_prints_the_table_and_writes_the_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "spec.json"
    assert main(["explain", f"{__name__}:network", "--input", "2,5:7", "--json", str(target)]) == 0
    spec = PermutationSpec.from_json(target.read_text())
    assert dict(spec.groups) == {"0.out": 4, "1.out": 6}
    assert capsys.readouterr().out.startswith(spec.explain())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torchvision", "--input", "1,3"], "names no factory"),
        (["no_such_module:make", "--input", "1,3"], "cannot make a network"),
        ([f"{__name__}:missing", "--input", "1,3"], "missing"),
        ([f"{__name__}:number", "--input", "1,3"], "makes a int"),
        ([f"{__name__}:network", "--input", "1,x"], "is no shape"),
        ([f"{__name__}:network", "--input", "0,3"], "is no shape"),
        ([f"{__name__}:network", "--input", "2,5"], "cannot be traced"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *arguments]) == 2
    assert message in capsys.readouterr().err
