"""The ledger, what makes a measurement stale, the command line, and the pages."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import c2m3_fl
from simulations.experiments.paper import cycle_consistency, published
from simulations.experiments.registry import EXPERIMENTS
from simulations.laboratory import command, report, staleness
from simulations.laboratory.experiment import NOT_RUN, Claim
from simulations.laboratory.ledger import Cell, Ledger, Record
from simulations.laboratory.pages import replace_block
from simulations.laboratory.scales import SCALES

MLP = ["--only", "network=mlp-mnist"]


def cell(k: int, measure: Callable[[], Mapping[str, object]], **depends: object) -> tuple[Cell, dict[str, object]]:
    return Cell({"k": k}, depends, (), measure), depends


def test_a_ledger_measures_once_forgets_what_was_cut_off_and_measures_again_what_is_stale(tmp_path: Path) -> None:
    path, made = tmp_path / "a.jsonl", list[int]()

    def square(k: int) -> dict[str, int]:
        made.append(k)
        return {"square": k * k}

    def measure_all(**depends: object) -> list[int]:
        ledger = Ledger(path)
        found = [ledger.measure(*cell(k, lambda k=k: square(k), **depends), "here") for k in range(3)]  # type: ignore[misc]
        ledger.tidy()
        return [record.values["square"] for record in found]

    assert measure_all(on=(1, 2)) == [0, 1, 4]
    assert made == [0, 1, 2]
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    assert measure_all(on=(1, 2)) == [0, 1, 4]
    assert made == [0, 1, 2, 2]
    assert measure_all(on=(1, 3)) == [0, 1, 4]
    assert made == [0, 1, 2, 2, 0, 1, 2]
    assert [json.loads(line)["about"]["k"] for line in path.read_text(encoding="utf-8").splitlines()] == [0, 1, 2]


def test_what_was_not_asked_for_makes_nothing_stale() -> None:
    record = Record({}, {}, 0.0, "", {"code": "a", "seeds": [0, 1], "data": {"mnist": "x"}})
    assert record.changed({"code": "a", "seeds": (0, 1)}) == []
    assert record.changed({"code": "b", "seeds": [0], "data": {"mnist": "x"}}) == ["code", "seeds"]


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package's source, copied to where it may be changed, and its fingerprints taken anew."""
    folder = tmp_path / "c2m3_fl"
    shutil.copytree(Path(c2m3_fl.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    usual = staleness._folder
    monkeypatch.setattr(staleness, "_folder", lambda name: folder if name == "c2m3_fl" else usual(name))
    yield folder
    _forget()


def _forget() -> None:
    staleness.code_fingerprint.cache_clear()
    staleness._read.cache_clear()


def fingerprint(module: str = cycle_consistency.__name__) -> str:
    _forget()
    return staleness.code_fingerprint(module)


@pytest.mark.parametrize(
    "file", ["matching/default.py", "round.py", "device.py", "analysis/distance.py", "symmetry/trace.py"]
)
def test_a_measurement_depends_on_all_code_that_it_runs(file: str, copied: Path) -> None:
    before = fingerprint()
    path = copied / file
    text = path.read_text(encoding="utf-8")
    path.write_text("# a comment\n" + text.replace("from __future__", "\n\nfrom __future__"), encoding="utf-8")
    assert fingerprint() == before
    path.write_text(text + "\n_CHANGED = True\n", encoding="utf-8")
    assert fingerprint() != before


@pytest.mark.parametrize("file", ["cli.py", "federation/strategy.py"])
def test_a_measurement_does_not_depend_on_what_it_does_not_run(file: str, copied: Path) -> None:
    before, federated = fingerprint(), fingerprint("simulations.experiments.federated.benchmark")
    path = next(each for each in (copied / file, copied / file.replace(".py", "/__init__.py")) if each.is_file())
    path.write_text(path.read_text(encoding="utf-8") + "\n_CHANGED = True\n", encoding="utf-8")
    assert fingerprint() == before
    assert (fingerprint("simulations.experiments.federated.benchmark") != federated) == ("federation" in file)


def test_how_results_are_shown_is_no_part_of_the_measuring_code(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""Docs."""\n\ndef tables(records):\n    return 1\n\ndef measure():\n    """Docs."""\n    return 2\n'
    )
    before = staleness.ast.dump(staleness._measuring(module))
    module.write_text('"""Other."""\n\ndef tables(records):\n    return 3\n\ndef measure():\n    return 2\n')
    assert staleness.ast.dump(staleness._measuring(module)) == before
    module.write_text("def measure():\n    return 3\n")
    assert staleness.ast.dump(staleness._measuring(module)) != before


def smoke(tmp_path: Path, *more: str) -> list[str]:
    return ["--scale", "smoke", "--device", "cpu", "--cache", str(tmp_path / "cache"), *more]


def test_a_smoke_run_measures_without_data_once_and_writes_nothing_into_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command.COMMANDS["cycle-error"](smoke(tmp_path, *MLP))
    first = capsys.readouterr().out
    assert first.count("cycle-error-smoke: ") == 2
    assert "Around a cycle C2M3 maps a network exactly to itself, pairwise maps do not: held." in first
    command.COMMANDS["cycle-error"](smoke(tmp_path, *MLP))
    assert "cycle-error-smoke: " not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    results = tmp_path / "cache" / "results" / "cycle-error-smoke.jsonl"
    assert len(results.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("name", [each.name for each in EXPERIMENTS if each.page != "scale"])
def test_without_data_a_command_says_what_it_needs_and_fails(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Whatever needs nothing but the embedded digits is left out: it would be measured.
    only = ["--only", "cell=one-shot-mnist-mlp-iid-n5"] if name == "federated" else []
    options = ["--data-dir", str(tmp_path), "--cache", str(tmp_path), "--output", str(tmp_path / "results"), *only]
    with pytest.raises(SystemExit, match="nothing can be measured without these data"):
        command.COMMANDS[name](options)
    assert f"is not in {tmp_path}" in capsys.readouterr().err


def test_a_name_that_nothing_is_about_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no measurement is about network=mlp-mnits; there are network: .*mlp-mnist"):
        command.COMMANDS["width"](smoke(tmp_path, "--only", "network=mlp-mnits"))
    with pytest.raises(SystemExit, match="KEY=VALUE"):
        command.COMMANDS["width"](smoke(tmp_path, "--only", "mlp-mnist"))


def test_endpoints_are_trained_by_name_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.COMMANDS["endpoints"](smoke(tmp_path, *MLP, "--seeds", "1-2"))
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "trained MLP, digits, seed 1",
        "trained MLP, digits, seed 2",
    ]
    with pytest.raises(SystemExit, match="is not in"):
        command.COMMANDS["endpoints"]([*MLP, "--cache", str(tmp_path), "--data-dir", str(tmp_path), "--device", "cpu"])


@pytest.mark.parametrize("scale", SCALES)
def test_cells_have_descriptions_of_their_own(scale: str, tmp_path: Path) -> None:
    options = command.parser("x", "").parse_args(["--scale", scale, "--device", "cpu"])
    laboratory = command.open_laboratory(options)
    for experiment in EXPERIMENTS:
        abouts = [json.dumps(each.about, sort_keys=True) for each in experiment.cells(laboratory)]
        assert abouts
        assert len(set(abouts)) == len(abouts)


def written(folder: Path, **changes: object) -> None:
    """Results of the cycle error at the size `cpu`, as today's code on today's networks would have them."""
    options = command.parser("x", "").parse_args(["--device", "cpu"])
    cells = cycle_consistency.EXPERIMENT.cells(command.open_laboratory(options))
    ledger = Ledger(folder / "cycle-error-cpu.jsonl")
    values = {"errors": [0.0, 0.0, 0.0], "position": [0.0, 1.0], "accuracy": [0.5, 0.5], "loss": [1.0, 1.0]}
    for each in cells:
        if each.about["network"] == "mlp-mnist":
            off = 0.0 if each.about["method"] == "c2m3" else 1.0
            shown = {**values, "errors": [off] * 3}
            ledger.measure(replace(each, measure=lambda shown=shown: shown), {**each.depends, **changes}, "here")  # type: ignore[misc]


def page(tmp_path: Path) -> str:
    report.write_pages(EXPERIMENTS, tmp_path, tmp_path / "docs")
    return (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_page_has_a_row_for_what_was_not_run(tmp_path: Path) -> None:
    text = page(tmp_path)
    for experiment in EXPERIMENTS:
        assert (f"## {experiment.title}" in text) == (experiment.page == "results")
    assert NOT_RUN in text
    assert "86.0 %" in text  # the paper's own number is there all the same


def test_the_page_begins_with_claims_and_shows_measurements_beside_the_papers(tmp_path: Path) -> None:
    written(tmp_path)
    text = page(tmp_path)
    assert text.startswith("# The paper, reproduced\n\n## The paper's claims\n")
    assert "0.00, 0.00, 0.00" in text
    assert str(published.CYCLE_ERROR["git-re-basin"][0]) in text
    assert "Stale" not in text
    assert (tmp_path / "docs/figures/cycle-error-mlp-mnist-cpu.png").is_file()
    assert page(tmp_path) == text


def test_the_page_says_what_is_stale_and_why(tmp_path: Path) -> None:
    written(tmp_path, code="older")
    assert "**Stale,** since made with other code than today's: mlp-mnist (2)." in page(tmp_path)
    (tmp_path / "cycle-error-cpu.jsonl").unlink()
    written(tmp_path, code="older", networks="fewer epochs")
    assert "**Stale,** since made with networks of another recipe than today's: mlp-mnist (2)." in page(tmp_path)


def test_figures_of_the_page_are_loaded_when_they_come_into_view(tmp_path: Path) -> None:
    written(tmp_path)
    page(tmp_path)
    html = (tmp_path / "docs/results.html").read_text(encoding="utf-8")
    assert '<img loading="lazy" width="' in html
    assert 'src="figures/cycle-error-mlp-mnist-cpu.png"' in html
    assert 'name="viewport"' in html
    assert 'href="#cycle-error-figures-2a-and-2b"' in html
    assert 'id="cycle-error-figures-2a-and-2b"' in html
    assert "data:" not in html
    assert 'src="http' not in html
    assert len(html) < 200_000


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach((each) => { each.open = location.hash === "#open" || each.open })
  const loaded = [...document.images].filter((image) => image.naturalWidth > 0).length
  const root = document.documentElement
  document.title = JSON.stringify([root.scrollWidth, innerWidth, root.scrollHeight, document.images.length, loaded])
})</script>"""


def in_browser(page: Path, fragment: str = "") -> tuple[int, ...]:
    """Widths of page and window, the page's height, figures, and how many of them were loaded, on a telephone."""
    assert CHROMIUM is not None
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text(encoding="utf-8").replace("</head>", PROBE + "</head>"), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,844", "--dump-dom")
    # Without a window, Chromium loads everything at once unless it is told not to.
    lazy = "--blink-settings=lazyLoadEnabled=true"
    command_line = [CHROMIUM, *options, lazy, probed.as_uri() + fragment]
    shown = subprocess.run(command_line, capture_output=True, text=True, check=True, timeout=120).stdout
    return tuple(json.loads(shown.partition("<title>")[2].partition("</title>")[0]))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("fragment", ["", "#open"])
def test_the_page_opens_at_once_and_fits_a_telephone(tmp_path: Path, fragment: str) -> None:
    written(tmp_path)
    page(tmp_path)
    width, window, height, figures, loaded = in_browser(tmp_path / "docs/results.html", fragment)
    assert width <= window
    assert figures > 0
    assert loaded == 0  # they are folded up, or far below
    assert (height < 6_000) == (not fragment)


def test_a_block_keeps_the_words_around_it(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Title\n\nAdvice.\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nMore.\n", encoding="utf-8")
    replace_block(path, "a", "new", "unused")
    replace_block(path, "b", "second", "unused")
    text = path.read_text(encoding="utf-8")
    assert text == (
        "# Title\n\nAdvice.\n\n<!-- begin a -->\nnew\n<!-- end a -->\n\nMore.\n\n"
        "<!-- begin b -->\nsecond\n<!-- end b -->\n"
    )


@pytest.mark.parametrize(
    ("cases", "verdict"), [([True, True], "held"), ([True, False], "held in part"), ([False], "not held")]
)
def test_a_claim_is_held_where_every_case_agrees(cases: Sequence[bool], verdict: str) -> None:
    assert Claim.judged("", cases, "").verdict == verdict
