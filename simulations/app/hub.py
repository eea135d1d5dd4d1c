"""The app as Flower Hub takes it: ``python -m simulations hub FOLDER`` (flwr 1.41).

The Hub publishes whole folders and has rules that the repository as a whole does not keep: no file above 1 MiB, a licence
named as a file, the versions of the bundle's format and of Flower, and front matter in the README as Flower's baselines
have it. So the app is copied, with these added.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("c2m3_fl", "clients", "simulations")
FLOWER = "1.41.0"
"""The version of Flower that the app is made for."""

FRONT_MATTER = """---
title: "C²M³: Cycle-Consistent Multi-Model Merging"
url: https://arxiv.org/abs/2405.17897
labels: [model merging, permutation symmetry, data heterogeneity, one-shot]
dataset: [digits, MNIST, Fashion-MNIST, EMNIST letters, CIFAR-10, CIFAR-100]
---

"""
_CHANGES = {
    r'^license = "Apache-2.0"\nlicense-files = \["LICENSE"\]$': 'license = { file = "LICENSE" }',
    r'^publisher = "c2m3-fl"\n(?:#.*\n)*fab-include = .*$': (
        f'publisher = "c2m3-fl"\nfab-format-version = 1\nflwr-version-target = "{FLOWER}"'
    ),
}


def stage(folder: Path) -> None:
    """Write the app into a new folder.

    Raises
    ------
    FileExistsError
        If it exists.
    ValueError
        If ``pyproject.toml`` no longer reads as expected.
    """
    folder.mkdir(parents=True)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    shutil.copy(ROOT / "LICENSE", folder)
    (folder / "pyproject.toml").write_text(_project(), encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.compile(r"^!\[.*\]\(.*\)\n\n", re.MULTILINE)  # the Hub takes no pictures
    (folder / "README.md").write_text(FRONT_MATTER + pictures.sub("", readme), encoding="utf-8")
    pages = [page for page in (ROOT / "docs").rglob("*.md") if not page.name.startswith("_")]
    for page in pages:
        target = folder / page.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, target)


def _project() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for pattern, replacement in _CHANGES.items():
        text, changed = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if changed != 1:
            raise ValueError(f"pyproject.toml has {changed} places like {pattern!r}; mend simulations/app/hub.py")
    return text


def main(arguments: list[str]) -> None:
    """Stage the app into the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m simulations hub", description="Write the app for Flower Hub.")
    parser.add_argument("folder", type=Path, help="a new folder; its name is the app's on the Hub")
    folder: Path = parser.parse_args(arguments).folder
    if folder.exists():
        sys.exit(f"{folder} exists")
    stage(folder)
    print(f"wrote {folder}; bundle it by: flwr build --app {folder}, publish it by: flwr app publish {folder}")
