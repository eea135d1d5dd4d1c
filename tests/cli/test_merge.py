from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from c2m3_fl import aggregate
from c2m3_fl.cli import main
from c2m3_fl.cli.options import choices
from tests.cli import networks
from tests.cli.networks import PERCEPTRON, labelled, perceptron, planted, save, weights


def merge(*arguments: str, network: str = PERCEPTRON) -> int:
    return main(["merge", network, *arguments])


def same_function(merged: dict[str, Tensor], original: dict[str, Tensor]) -> bool:
    first, second = perceptron(), perceptron()
    first.load_state_dict(merged)
    second.load_state_dict(original)
    inputs = torch.randn(16, networks.FEATURES)
    return torch.allclose(first(inputs), second(inputs), atol=1e-5)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_planted_permutations_come_back(tmp_path: Path, suffix: str, calibrated: bool) -> None:
    files = planted(tmp_path, 3, suffix)
    output = tmp_path / f"merged{suffix}"
    data = ["--calibration", labelled(tmp_path, weights(0))] if calibrated else ["--input", "1,6"]
    assert merge(*files, "--output", str(output), *data) == 0
    merged = load_file(output) if suffix == ".safetensors" else torch.load(output, weights_only=True)
    assert same_function(merged, weights(0))
    assert list(merged) == list(weights(0)) or suffix == ".safetensors"


def test_the_file_tells_how_it_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, data = planted(tmp_path), labelled(tmp_path, weights(0))
    made = []
    for name in ("m.safetensors", "m.pt"):
        arguments = [
            "--calibration",
            data,
            "--examples",
            "32",
            "--weights",
            "3,1",
            "--json",
            "-o",
            str(tmp_path / name),
        ]
        assert merge(*files, *arguments) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed.pop("output") == str(tmp_path / name)
        made.append(printed)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert json.loads(file.metadata()["c2m3"]) == made[0]
    assert json.loads(torch.load(tmp_path / "m.pt", weights_only=True)._metadata[""]["c2m3"]) == made[1]
    assert made[0] == made[1]
    assert [(each["file"], each["weight"]) for each in made[0]["sources"]] == [
        ("a.safetensors", 3),
        ("b.safetensors", 1),
    ]
    assert made[0]["calibration"] == {"file": "data.npz", "examples": 32}
    assert made[0]["objective"] > made[0]["objective_before"]
    assert str(tmp_path) not in json.dumps(made[0])
    assert perceptron().load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", weights(0))
    save(tmp_path / "b.pt", weights(1))
    data = labelled(tmp_path, weights(0))
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert (
            merge(
                str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--calibration", data, "-o", f"{folder}/m.safetensors"
            )
            == 0
        )
    assert (tmp_path / "0/m.safetensors").read_bytes() == (tmp_path / "1/m.safetensors").read_bytes()


def test_training_checkpoints_of_wrapped_networks(tmp_path: Path) -> None:
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in weights(0).items()}
    torch.save({"epoch": 3, "model_state_dict": wrapped, "best": torch.tensor(0.9)}, tmp_path / "a.pt")
    torch.save({"ema": {"shadow": weights(0)}, "state_dict": {}}, tmp_path / "b.pt")
    files = str(tmp_path / "a.pt"), str(save(tmp_path / "c.pt", weights(0)))
    assert merge(*files, "--input", "1,6", "-o", str(tmp_path / "m.pt")) == 0
    assert list(torch.load(tmp_path / "m.pt", weights_only=True)) == list(weights(0))
    inner = str(tmp_path / "b.pt"), str(tmp_path / "b.pt")
    assert merge(*inner, "--key", "ema.shadow", "--input", "1,6", "-o", str(tmp_path / "n.pt")) == 0


def test_half_precision_is_computed_in_float32_and_written_as_it_came(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        files = [
            save(tmp_path / f"{name}.safetensors", {key: value.to(dtype) for key, value in tensors.items()})
            for name, tensors in {"a": weights(0), "b": networks.shuffled(weights(0), 1)}.items()
        ]
        output = tmp_path / "m.safetensors"
        data = labelled(tmp_path, weights(0))
        assert merge(*files, "--calibration", data, "-o", str(output), "--force") == 0
        merged = load_file(output)
        assert {tensor.dtype for tensor in merged.values()} == {dtype}
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor.sum().double(), weights(0)[name].sum().double(), atol=0.05, rtol=0.02)


def test_tied_weights_are_written_once_as_they_came(tmp_path: Path) -> None:
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        state_dict = networks.Tied().state_dict()
        del state_dict["head.weight"]
        files.append(save(tmp_path / f"{seed}.safetensors", state_dict))
    output = tmp_path / "m.safetensors"
    assert merge(*files, "--input", "1,5:7", "-o", str(output), network=f"{networks.__name__}:Tied") == 0
    assert sorted(load_file(output)) == ["embed.weight", "hidden.bias", "hidden.weight"]


def test_old_files_without_batch_norms_counter_load_as_they_do_in_torch(tmp_path: Path) -> None:
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        state_dict = dict(networks.convolutional().state_dict())
        del state_dict["1.num_batches_tracked"]
        files.append(save(tmp_path / f"{seed}.pt", state_dict))
    output = tmp_path / "m.pt"
    assert merge(*files, "--input", "1,3,8,8", "-o", str(output), network=f"{networks.__name__}:convolutional") == 0
    assert networks.convolutional().load_state_dict(torch.load(output, weights_only=True))


def test_a_folder_of_images_calibrates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        files.append(save(tmp_path / f"{seed}.pt", networks.convolutional().state_dict()))
    random = np.random.default_rng(0)
    for number, name in enumerate(("cat/1.png", "cat/2.jpg", "dog/1.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(random.integers(0, 255, (10 + number, 12, 3), dtype=np.uint8)).save(path)
    arguments = [*files, "--calibration", str(tmp_path / "images"), "-o", str(tmp_path / "m.pt")]
    network = f"{networks.__name__}:convolutional"
    normalised = ["--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]
    assert merge(*arguments, "--input", "1,3,8,8", *normalised, "--json", network=network) == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == {"file": "images", "examples": 3}
    assert merge(*arguments, "--force", network=network) == 2
    assert "another size" in capsys.readouterr().err


def test_options_reach_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def watch(*arguments: Any, **options: Any) -> Any:
        seen.update(options)
        return aggregate(*arguments, **options)

    monkeypatch.setattr("c2m3_fl.cli.merge.aggregate", watch)
    arguments = [*planted(tmp_path, 3), "-o", str(tmp_path / "m.pt"), "--calibration", labelled(tmp_path, weights(0))]
    chosen = ["--matcher", "identity", "--repair", "none", "--robust", "exclude", "--no-guard", "--group-size", "2"]
    chosen += ["--task", "classification", "--classifier", "keep", "--activations", "0.5"]
    assert merge(*arguments, *chosen, "--weights", "1,2,3", "--batch-size", "10", "--device", "cpu") == 0
    assert (seen["matcher"], seen["repair"], seen["robust"], seen["guard"]) == ("identity", None, "exclude", False)
    assert (seen["group_size"], seen["weights"], len(seen["calibration"])) == (2, (1, 2, 3), 7)
    assert (seen["task"], seen["classifier"], seen["activations"]) == ("classification", "keep", 0.5)
    assert (seen["device"],) == (torch.device("cpu"),)


def test_predictions_are_found_where_the_command_line_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        files.append(save(tmp_path / f"{seed}.pt", networks.Pair().state_dict()))
    data, output = labelled(tmp_path, weights(0)), str(tmp_path / "m.pt")
    arguments = [*files, "--calibration", data, "-o", output, "--force"]
    network = f"{networks.__name__}:Pair"
    for key in ("logits", "noise"):
        assert merge(*arguments, "--predictions", key, "--json", network=network) == 0
        scores = json.loads(capsys.readouterr().out)["scores"]
        assert (len(set(scores.values())) > 1) == (key == "logits")
    assert merge(*arguments, "--predictions", "nothing", network=network) == 2
    assert "predictions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option in ("repair", "classifier") for value in choices(aggregate, option) if value != "none"],
)
def test_every_repair_and_classifier_of_the_library_is_an_option(tmp_path: Path, option: str, value: str) -> None:
    files = [save(tmp_path / f"{seed}.pt", weights(seed)) for seed in range(2)]
    data = labelled(tmp_path, weights(0))
    assert merge(*files, "--calibration", data, f"--{option}", value, "-o", str(tmp_path / "m.pt")) == 0


def test_other_networks_are_written_and_never_over_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = planted(tmp_path)
    before = Path(files[0]).read_bytes()
    assert merge(*files, "--input", "1,6", "-o", files[0]) == 2
    assert Path(files[0]).read_bytes() == before
    assert merge(*files, "--input", "1,6", "-o", str(tmp_path / "none" / "m.pt")) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert merge(*files, "--input", "1,6", "-o", files[0], "--force") == 0
    assert Path(files[0]).read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_loss_of_accuracy_is_not_hidden_by_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two unrelated networks: the report says which candidate was chosen, and its loss is the least."""
    files = [save(tmp_path / f"{seed}.pt", weights(seed)) for seed in range(2)]
    assert merge(*files, "--calibration", labelled(tmp_path, weights(0)), "-o", str(tmp_path / "m.pt"), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["scores"][made["chosen"]] <= made["scores"]["average"]


def test_a_network_that_needs_no_merging(tmp_path: Path) -> None:
    linear = nn.Linear(2, 2).state_dict()
    files = [save(tmp_path / f"{name}.pt", dict(linear)) for name in "ab"]
    assert (
        merge(
            *files,
            "--input",
            "1,2",
            "-o",
            str(tmp_path / "m.pt"),
            network="torch.nn:Linear(in_features=2,out_features=2)",
        )
        == 0
    )
    merged = torch.load(tmp_path / "m.pt", weights_only=True)
    assert all(torch.equal(merged[name], linear[name]) for name in linear)
