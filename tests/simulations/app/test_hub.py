from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.supercore.constant import MAX_DIR_DEPTH, MAX_FILE_BYTES, MAX_FILE_COUNT, MAX_TOTAL_BYTES

from simulations.app import hub

ROOT = Path(__file__).parents[3]


def _bundle(app: Path, folder: Path) -> list[zipfile.ZipInfo]:
    """What `flwr build` puts into the bundle of an app."""
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    command = [str(Path(sys.executable).parent / "flwr"), "build", "--app", str(app)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(folder.glob("*.fab"))) as archive:
        return archive.infolist()


def test_the_app_of_the_hub_keeps_its_rules(tmp_path: Path) -> None:
    app = tmp_path / "c2m3-fl"
    hub.stage(app)
    files = [path for path in app.rglob("*") if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    assert len(files) <= MAX_FILE_COUNT
    assert max(sizes) <= MAX_FILE_BYTES
    assert sum(sizes) <= MAX_TOTAL_BYTES
    assert max(len(path.relative_to(app).parts) for path in files) <= MAX_DIR_DEPTH
    project = tomllib.loads((app / "pyproject.toml").read_text())
    assert project["project"]["license"] == {"file": "LICENSE"}
    assert len(project["project"]["description"]) <= 200
    assert project["tool"]["flwr"]["app"]["fab-format-version"] == 1
    assert (
        project["tool"]["flwr"]["app"]["config"]
        == (tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"])
    )
    title, *lines = (app / "README.md").read_text().split("\n---\n")[0].removeprefix("---\n").splitlines()
    assert title.startswith("title: ")
    assert [line.split(":")[0] for line in lines] == ["url", "labels", "dataset"]
    names = {each.filename for each in _bundle(app, tmp_path)}
    assert {"LICENSE", "simulations/app/server_app.py", "clients/client_app.py", "c2m3_fl/py.typed"} - names <= {
        "c2m3_fl/py.typed"
    }


def test_the_bundle_of_a_run_is_small(tmp_path: Path) -> None:
    source = tmp_path / "app"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not in a clone")
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    files = _bundle(source, tmp_path)
    assert sum(each.file_size for each in files) < 1_500_000
    assert {each.filename.split("/")[0] for each in files} >= {"c2m3_fl", "clients", "simulations", "LICENSE"}
    assert not {each.filename.split("/")[0] for each in files} & {"docs", "tests", "examples"}


def test_staging_needs_a_new_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exists"):
        hub.main([str(tmp_path)])
