"""Every block of Python or shell on the pages runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from c2m3_fl.cli import main
from tests.docs.federation import files, namespace

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ("tutorial", *sorted(f"how-to/{path.stem}" for path in (DOCS / "how-to").glob("*.md")))


def shell(example: Example) -> None:
    """Run a block of the package's own commands, in this process: a new one takes seconds to import torch."""
    for line in example.parsed.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "c2m3", f"{line}: only the package's own command is run from pages"
        assert main(arguments) == 0, line


def parsed(page: str) -> Document:
    parsers = [PythonCodeBlockParser(), CodeBlockParser(language="bash", evaluator=shell), SkipParser()]
    return Sybil(parsers).parse(DOCS / f"{page}.md")


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files(tmp_path, Path(page).name)
    document = parsed(page)
    document.namespace.update({} if page == "tutorial" else namespace())
    monkeypatch.syspath_prepend(tmp_path)  # and forget the module of the page before
    monkeypatch.delitem(sys.modules, "model", raising=False)
    for example in document.examples():
        example.evaluate()
    monkeypatch.delitem(sys.modules, "model", raising=False)


def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python; its shell commands are `make`'s, and those that the pages have."""
    monkeypatch.chdir(tmp_path)
    document = Sybil([PythonCodeBlockParser()]).parse(ROOT / "README.md")
    document.namespace.update(namespace())
    examples = list(document.examples())
    assert len(examples) >= 3
    for example in examples:
        example.evaluate()


def test_no_block_is_overlooked() -> None:
    """Each fence of a page is of a language that the test runs, or of one that nobody runs."""
    for page in PAGES:
        fences = re.findall(r"^```(\S*)$", (DOCS / f"{page}.md").read_text(), re.MULTILINE)
        assert set(fences) <= {"python", "bash", ""}
        blocks = sum(language in ("python", "bash") for language in fences)
        assert sum(1 for _ in parsed(page).examples()) >= blocks


def test_the_picture_of_the_universe_is_made_by_its_script(tmp_path: Path) -> None:
    script = DOCS / "figures/universe.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "made.png")], check=True)
    assert (tmp_path / "made.png").read_bytes() == (DOCS / "figures/universe.png").read_bytes()


def test_every_page_is_in_the_contents() -> None:
    """Sphinx warns of pages that are not, and warnings are errors."""
    listed = set(re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in [*DOCS.glob("*.md"), *DOCS.glob("*/*.md")]}
    assert {page for page in pages if not page.split("/")[-1].startswith("_")} - {"index"} <= listed


def test_links_of_markdown_files_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("*/*.md"), *(ROOT / "examples").rglob("*.md")]
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_places_that_contributing_names_exist() -> None:
    named = re.findall(
        r"`((?:c2m3_fl|clients|simulations|examples|docs|tests)/[\w/.]*)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    assert len(named) > 15
    for place in named:
        assert (
            (ROOT / place).exists() or place == "c2m3_fl/matching/my_matcher.py" or place.startswith("docs/_build")
        ), place
