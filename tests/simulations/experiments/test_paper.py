"""Every experiment of the paper at its smallest size, and the page made of its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from simulations.experiments.paper import published
from simulations.laboratory import report
from simulations.laboratory.commands import COMMANDS
from simulations.laboratory.experiment import NOT_RUN
from simulations.laboratory.ledger import Ledger
from simulations.laboratory.registry import EXPERIMENTS
from simulations.laboratory.results import read_results
from simulations.laboratory.runner import main_of

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all experiments of this module, so that each network is trained once."""
    return tmp_path_factory.mktemp("paper")


def options(folder: Path, *networks: str) -> list[str]:
    chosen = [option for network in networks for option in ("--network", network)]
    return [
        *("--scale", "smoke", "--device", "cpu", "--cache", str(folder / "cache")),
        *("--output", str(folder / "results"), *chosen),
    ]


@pytest.mark.parametrize("name", BY_NAME)
def test_an_experiment_measures_once_and_shows_what_it_measured(name: str, folder: Path) -> None:
    main_of(BY_NAME[name], options(folder, "mlp-mnist"))
    results = read_results(folder / "results", name, "smoke")
    assert results is not None
    assert results.records
    assert {record.about["network"] for record in results.records} == {"mlp-mnist"}
    assert all(torch.isfinite(torch.tensor(number)) for record in results.records for number in numbers(record.values))
    ledger = folder / "cache" / "measurements" / "smoke" / f"{name}.jsonl"
    written = ledger.read_text(encoding="utf-8")
    main_of(BY_NAME[name], options(folder, "mlp-mnist"))
    assert ledger.read_text(encoding="utf-8") == written
    tables = list(BY_NAME[name].tables(results.records))
    assert tables
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert any("mlp-mnist" in text for table in tables for text in (table.title, *(r[0] for r in table.rows)))
    assert all("mlp-mnist" in finding for finding in BY_NAME[name].findings(results.records))
    pictures = list(BY_NAME[name].pictures(results.records))
    assert pictures
    assert len({picture.name for picture in pictures}) == len(pictures)


def numbers(value: object) -> list[float]:
    """All numbers in a nest of lists and mappings."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("network", ["resnet20-cifar10", "vgg16-cifar10"])
def test_convolutional_networks_are_merged(network: str, folder: Path) -> None:
    main_of(BY_NAME["merging-five"], options(folder, network))
    results = read_results(folder / "results", "merging-five", "smoke")
    assert results is not None
    assert network in {record.about["network"] for record in results.records}


def test_results_of_other_networks_are_kept(folder: Path) -> None:
    main_of(BY_NAME["width"], options(folder, "mlp-mnist"))
    main_of(BY_NAME["width"], options(folder, "resnet20-cifar10"))
    results = read_results(folder / "results", "width", "smoke")
    assert results is not None
    assert {record.about["network"] for record in results.records} == {"mlp-mnist", "resnet20-cifar10"}
    assert set(results.networks) == {"mlp-mnist", "resnet20-cifar10"}


def test_c2m3_has_no_cycle_error(folder: Path) -> None:
    main_of(BY_NAME["cycle-error"], options(folder, "mlp-mnist"))
    results = read_results(folder / "results", "cycle-error", "smoke")
    assert results is not None
    errors = {record.about["method"]: record.values["errors"] for record in results.records}
    assert errors["c2m3"] == [0, 0, 0]
    assert min(errors["git-re-basin"]) > 0


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(SystemExit, match="there is no network mlp-mnits; the networks are mlp-mnist"):
        COMMANDS["width"](["--scale", "smoke", "--network", "mlp-mnits"])


def test_the_page_has_a_row_for_what_was_not_run(tmp_path: Path) -> None:
    report.build(EXPERIMENTS, tmp_path / "none", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    for experiment in EXPERIMENTS:
        assert f"## {experiment.title} ({experiment.source})" in page
    assert NOT_RUN in page
    assert "86.0 %" in page  # the paper's own number is there all the same


def test_the_page_shows_measurements_beside_the_papers(folder: Path, tmp_path: Path) -> None:
    main_of(BY_NAME["cycle-error"], options(folder, "mlp-mnist"))
    text = (folder / "results" / "cycle-error-smoke.json").read_text(encoding="utf-8")
    results = tmp_path / "results"
    results.mkdir()
    (results / "cycle-error-cpu.json").write_text(text.replace('"scale": "smoke"', '"scale": "cpu"'), encoding="utf-8")
    report.build(EXPERIMENTS, results, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "0.00, 0.00, 0.00" in page
    assert str(published.CYCLE_ERROR["git-re-basin"][0]) in page
    assert "exactly 0" in page
    assert (tmp_path / "figures" / "cycle-error-mlp-mnist-cpu.png").is_file()
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in html
    assert 'src="http' not in html
    before = page
    report.build(EXPERIMENTS, results, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == before


def test_a_ledger_forgets_only_the_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    ledger = Ledger(path, "here")
    for k in range(3):
        ledger.measure({"k": k}, {"on": 1}, lambda k=k: {"square": k * k})  # type: ignore[misc]
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-9], encoding="utf-8")
    made: list[int] = []

    def square(k: int) -> dict[str, int]:
        made.append(k)
        return {"square": k * k}

    again = Ledger(path, "here")
    values = [again.measure({"k": k}, {"on": 1}, lambda k=k: square(k)).values["square"] for k in range(3)]  # type: ignore[misc]
    assert values == [0, 1, 4]
    assert made == [2]
    again.measure({"k": 0}, {"on": 2}, lambda: square(0))
    assert made == [2, 0]
    third = Ledger(path, "here")
    third.measure({"k": 2}, {"on": 1}, lambda: square(9))
    assert made == [2, 0]
    assert [json.loads(json.dumps(record.values)) for record in third.records()] == [{"square": 4}]
