"""Data sets: what arrives is what the files hold, and what cannot be used is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clients.data import DataError, load_data


def write_npz(path: Path, **changes: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8),
        "y_train": np.arange(30) % 4,
        "x_test": rng.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return str(path)


def test_digits_are_all_there_with_every_class_in_both_splits() -> None:
    data = load_data("digits")
    assert len(data.train) + len(data.test) == 1797
    assert data.input_shape == (1, 8, 8)
    assert data.num_classes == 10
    assert set(data.train.labels.tolist()) == set(data.test.labels.tolist()) == set(range(10))


def test_training_inputs_are_normalised_per_channel_and_test_inputs_alike(tmp_path: Path) -> None:
    data = load_data(write_npz(tmp_path / "a.npz"))
    inputs = data.train.inputs()
    torch.testing.assert_close(inputs.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    expected = (data.test.images.float() - data.train.mean.view(1, 3, 1, 1)) / data.train.std.view(1, 3, 1, 1)
    torch.testing.assert_close(data.test.inputs(), expected)


def test_npz_pixels_stay_in_their_places(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "b.npz")
    data = load_data(path)
    with np.load(path) as archive:
        original = archive["x_train"]
    assert data.input_shape == (3, 6, 5)
    assert data.num_classes == 4
    assert data.train.images[7, 2, 4, 1] == original[7, 4, 1, 2]


def test_npz_is_found_in_the_data_folder_and_grey_images_get_their_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    grey = {"x_train": rng.random((30, 6, 6)), "x_test": rng.random((8, 6, 6))}
    write_npz(tmp_path / "c.npz", **grey)
    assert load_data("c.npz", str(tmp_path)).input_shape == (1, 6, 6)


def test_a_constant_channel_stays_finite(tmp_path: Path) -> None:
    data = load_data(write_npz(tmp_path / "d.npz", x_train=np.zeros((30, 6, 5, 3), dtype=np.uint8)))
    assert torch.isfinite(data.test.inputs()).all()


def test_a_data_set_is_loaded_once() -> None:
    assert load_data("digits") is load_data("digits")


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"y_test": None}, "y_test"),
        ({"x_train": np.zeros((30, 7))}, "x_train"),
        ({"x_train": np.full((30, 6, 5, 3), np.nan)}, "x_train"),
        ({"y_train": np.zeros(29, dtype=int)}, "y_train"),
        ({"y_train": np.zeros(30)}, "y_train"),
        ({"y_train": np.full(30, -1)}, "y_train"),
        ({"x_test": np.zeros((8, 6, 6, 3), dtype=np.uint8)}, "differ"),
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path: Path, changes: dict[str, np.ndarray], culprit: str) -> None:
    with pytest.raises(DataError, match=culprit):
        load_data(write_npz(tmp_path / "bad.npz", **changes))


@pytest.mark.parametrize(
    ("name", "hint"), [("mnits", "mnist"), ("mnist", "data-dir"), ("cifar10", "download"), ("absent.npz", "data-dir")]
)
def test_missing_data_sets_say_the_way_out(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint):
        load_data(name, str(tmp_path))
