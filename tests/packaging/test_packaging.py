"""What strangers get: one version everywhere, a source distribution that tests itself, a wheel that stands alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import c2m3_fl

ROOT = Path(__file__).parents[2]

_ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
for blocked in ("flwr", "flwr_datasets", "ray", "matplotlib", "sklearn", "torchvision", "PIL", "rich", "typer"):
    sys.modules[blocked] = None
import torch
from torch import nn
import c2m3_fl
from c2m3_fl.cli import main
assert c2m3_fl.__file__.startswith(sys.argv[1]), c2m3_fl.__file__
for seed in range(2):
    torch.manual_seed(seed)
    torch.save(nn.Linear(4, 2).state_dict(), f"{seed}.pt")
network = "torch.nn:Linear(in_features=4, out_features=2)"
assert main(["merge", network, "0.pt", "1.pt", "--input", "1,4", "--output", "merged.pt"]) == 0
try:
    c2m3_fl.C2M3
except ImportError as error:
    assert "flwr" in str(error)
else:
    raise AssertionError("the strategy needs Flower")
"""


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert project["version"] == c2m3_fl.__version__ == cited.group(1)


def test_constraints_name_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    names = {re.split(r"[\[<>=]", each)[0] for each in wanted}
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert names == pinned


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution made of what is tracked, and the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("built")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    names = tracked.stdout.decode().split("\0") if tracked.returncode == 0 else []
    source = folder / "source" if any(names) else ROOT
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_works_without_flower_and_its_extras(built: Path, tmp_path: Path) -> None:
    wheel = next(built.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert all(name.startswith(("c2m3_fl/", "c2m3_fl-")) for name in names)
    assert "c2m3_fl/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    command = [sys.executable, "-c", _ALONE, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_source_distribution_runs_its_tests(built: Path, tmp_path: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(tmp_path.iterdir())
    chosen = ["tests/cli/test_main.py", "tests/test_averaging.py", "tests/docs/test_pages.py", "tests/packaging"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert collected.returncode == 0, collected.stdout[-3000:]
