"""Endpoints: their recipe, and the folder they are kept in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simulations.laboratory import training
from simulations.laboratory.endpoints import EndpointConfig, EndpointStore, find_data
from simulations.laboratory.training import Recipe, augment

QUICK = Recipe(epochs=3, batch_size=64, learning_rate=0.1, warmup_epochs=1)
CONFIG = EndpointConfig("digits", "mlp", QUICK, width=1 / 16)


@pytest.fixture
def store(tmp_path: Path) -> EndpointStore:
    return EndpointStore(tmp_path, tmp_path, torch.device("cpu"))


def test_a_network_is_trained_once(store: EndpointStore, capsys: pytest.CaptureFixture[str]) -> None:
    first = store.get(CONFIG)
    assert "trained MLP, digits, seed 0" in capsys.readouterr().out
    second = store.get(CONFIG)
    assert capsys.readouterr().out == ""
    assert all(torch.equal(tensor, second.state_dict[name]) for name, tensor in first.state_dict.items())
    assert [path.suffix for path in store.folder.iterdir()] == [".pt"]


def test_training_repeats_to_the_bit(store: EndpointStore) -> None:
    first = store.get(CONFIG)
    store.path(CONFIG).unlink()
    second = store.get(CONFIG)
    assert all(torch.equal(tensor, second.state_dict[name]) for name, tensor in first.state_dict.items())


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIG, seed=1),
        replace(CONFIG, width=1 / 8),
        replace(CONFIG, train_size=100),
        replace(CONFIG, recipe=replace(QUICK, weight_decay=0.0)),
        replace(CONFIG, recipe=replace(QUICK, precision="bfloat16")),
    ],
)
def test_all_that_determines_a_network_is_in_its_name(store: EndpointStore, other: EndpointConfig) -> None:
    assert store.path(other) != store.path(CONFIG)


def test_other_images_under_the_same_name_make_another_network(tmp_path: Path) -> None:
    import numpy as np  # noqa: PLC0415

    paths = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        images = np.full((8, 4, 4), 7, np.uint8)
        images[0, 0, 0] = number
        labels = np.arange(8) % 2
        np.savez(folder / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        store = EndpointStore(tmp_path, folder, torch.device("cpu"))
        paths.append(store.path(replace(CONFIG, dataset="mine")))
    assert paths[0] != paths[1]


def test_the_network_learns(store: EndpointStore) -> None:
    from simulations.laboratory.laboratory import Bench  # noqa: PLC0415
    from simulations.laboratory.scales import SCALES  # noqa: PLC0415

    config = replace(CONFIG, recipe=replace(QUICK, epochs=15))
    assert Bench(config, store, SCALES["smoke"]()).quality(store.get(config).state_dict)["test_accuracy"] > 0.85


def test_the_learning_rate_rises_falls_and_restarts() -> None:
    recipe = Recipe(epochs=30, batch_size=1, learning_rate=2.0, warmup_epochs=2, restart_epochs=10)
    assert recipe.rate(1.0) == 1.0
    assert recipe.rate(2.0) == 2.0
    assert recipe.rate(6.0) == pytest.approx(1.0)
    assert recipe.rate(9.999) < 1e-5
    assert recipe.rate(10.0) == 2.0
    assert recipe.rate(15.0) == pytest.approx(1.0)
    assert Recipe(epochs=4, batch_size=1, learning_rate=1.0).rate(2.0) == pytest.approx(0.5)


def test_the_one_cycle_rate_falls_in_a_line_to_zero() -> None:
    recipe = Recipe(epochs=10, batch_size=1, learning_rate=3e-3, warmup_epochs=2, decay="linear")
    assert [recipe.rate(epoch) for epoch in (1.0, 2.0, 6.0, 10.0 - 1e-9)] == pytest.approx([1.5e-3, 3e-3, 1.5e-3, 0.0])


ONE_CYCLE = Recipe(
    epochs=4,
    batch_size=64,
    optimizer="adamw",
    learning_rate=1e-2,
    weight_decay=0.05,
    warmup_epochs=0.8,
    decay="linear",
    augment=True,
    precision="bfloat16",
    clip_norm=1.0,
    label_smoothing=0.1,
)


def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(
    store: EndpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, recipe=ONE_CYCLE)
    whole = store.get(config).state_dict
    path = store.path(config)
    path.unlink()
    epochs = []
    train_epoch = training._Run.train_epoch

    def power_cut(run: training._Run, *data: torch.Tensor) -> None:
        epochs.append(run.epoch)
        if epochs == [0, 1, 2]:
            raise KeyboardInterrupt
        train_epoch(run, *data)

    monkeypatch.setattr(training._Run, "train_epoch", power_cut)
    with pytest.raises(KeyboardInterrupt):
        store.get(config)
    assert not path.exists()
    resumed = store.get(config).state_dict
    assert epochs == [0, 1, 2, 2, 3]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert list(store.folder.iterdir()) == [path]


def test_adamw_decays_matrices_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    groups = training._optimizer(model, ONE_CYCLE).param_groups
    assert {id(p): group["weight_decay"] for group in groups for p in group["params"]} == {
        id(p): 0.05 if p.ndim > 1 else 0.0 for p in model.parameters()
    }


def test_smoothing_the_gradients_bound_and_the_optimizer_change_the_network(store: EndpointStore) -> None:
    recipes = [
        ONE_CYCLE,
        replace(ONE_CYCLE, label_smoothing=0.0),
        replace(ONE_CYCLE, clip_norm=0.01),
        replace(ONE_CYCLE, optimizer="adam"),
    ]
    biases = [store.get(replace(CONFIG, recipe=recipe)).state_dict["output.bias"] for recipe in recipes]
    assert all(not torch.equal(a, b) for i, a in enumerate(biases) for b in biases[:i])


def test_augmentation_shifts_and_flips_whole_images() -> None:
    images = torch.arange(1.0, 6 * 2 * 8 * 8 + 1).view(6, 2, 8, 8)
    found = augment(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    for image, source in zip(found, padded, strict=True):
        windows = source.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert any(torch.equal(image, w) or torch.equal(image, w.flip(2)) for w in windows)
    assert not torch.equal(found, images)


def test_a_file_in_the_data_folder_is_preferred(tmp_path: Path) -> None:
    assert find_data("digits-32", tmp_path).input_shape == (3, 32, 32)
