from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from c2m3_fl.cli import main
from c2m3_fl.cli.checkpoints import Checkpoints
from tests.cli.networks import PERCEPTRON, labelled, planted, save, weights


@pytest.mark.parametrize("kind", ["maps.safetensors", "maps.json"])
def test_planted_permutations_are_found_written_and_applied(kind: str, tmp_path: Path) -> None:
    files, maps = planted(tmp_path, 3), str(tmp_path / kind)
    assert main(["align", PERCEPTRON, *files, "--input", "1,6", "-o", maps]) == 0
    results = []
    for number, file in enumerate(files):
        output = tmp_path / f"universe-{number}.safetensors"
        assert main(["apply", maps, file, "-o", str(output)]) == 0
        results.append(load_file(output))
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in results[0])
    assert main(["apply", maps, files[2], "--to", "a.safetensors", "-o", str(tmp_path / "like-a.pt")]) == 0
    mapped = torch.load(tmp_path / "like-a.pt", weights_only=True)
    assert all(torch.equal(mapped[name], weights(0)[name]) for name in mapped)


def test_a_file_is_known_by_its_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        save(folder / "model.pt", weights(seed))
    maps = str(tmp_path / "maps.json")
    files = [str(folder / "model.pt") for folder in folders]
    assert main(["align", PERCEPTRON, *files, "--input", "1,6", "-o", maps, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["moved"] > 0
    output = str(tmp_path / "out.pt")
    assert main(["apply", maps, files[1], "--to", "model.pt", "-o", output]) == 2
    assert "may be any of 2" in capsys.readouterr().err
    assert main(["apply", maps, files[1], "--to", files[0], "-o", output]) == 0
    save(Path(files[1]), weights(3))  # trained on since
    assert main(["apply", maps, files[1], "-o", output, "--force"]) == 2
    assert "has changed since" in capsys.readouterr().err
    (tmp_path / "copy.pt").write_bytes(Path(files[0]).read_bytes())
    assert main(["apply", maps, files[1], "--as", str(tmp_path / "copy.pt"), "-o", output, "--force"]) == 0
    assert main(["apply", maps, files[1], "--as", "other.pt", "-o", output, "--force"]) == 2


@pytest.mark.parametrize("kind", ["maps.safetensors", "maps.json"])
def test_files_that_are_no_permutations(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, maps = planted(tmp_path), tmp_path / kind
    output = str(tmp_path / "out.pt")
    for content in (b"", b"{}", b"[1]", b'{"format": "c2m3-permutations", "version": 1}'):
        maps.write_bytes(content)
        assert main(["apply", str(maps), files[0], "-o", output]) == 2
        assert "no file of permutations" in capsys.readouterr().err
    maps.unlink()
    assert main(["align", PERCEPTRON, *files, "--input", "1,6", "-o", str(maps)]) == 0
    if maps.suffix == ".json":
        document = json.loads(maps.read_text())
        document["permutations"][0]["0.out"][0] = document["permutations"][0]["0.out"][1]
        maps.write_text(json.dumps(document))
        assert main(["apply", str(maps), files[0], "-o", output]) == 2
        assert "not a permutation" in capsys.readouterr().err
    other = save(tmp_path / "other.pt", {"x": torch.ones(2)})
    assert main(["apply", str(maps), other, "--as", "b.safetensors", "-o", output]) == 2


@pytest.mark.parametrize("command", ["align", "merge"])
def test_many_files_are_never_in_memory_at_once(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by what is alive each time a file is read: a group of two, the first, and the one that is read."""
    files = [save(tmp_path / f"{seed}.pt", weights(seed)) for seed in range(8)]
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    original: Any = Checkpoints.__getitem__

    def watch(self: Checkpoints, index: Any) -> Any:
        nonlocal most
        found = original(self, index)
        if isinstance(index, int):
            alive.append(weakref.ref(found["0.weight"]))
            most = max(most, sum(each() is not None for each in alive))
        return found

    monkeypatch.setattr(Checkpoints, "__getitem__", watch)
    options = ["--group-size", "2", "-o", str(tmp_path / "m.json" if command == "align" else tmp_path / "m.pt")]
    data = ["--input", "1,6"] if command == "align" else ["--calibration", labelled(tmp_path, weights(0))]
    assert main([command, PERCEPTRON, *files, *data, *options]) == 0
    assert most <= 4
