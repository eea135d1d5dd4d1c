"""Data sets: what arrives is what the files hold, and what cannot be used is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clients.data import DataError, load_data, load_own


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
        ({"x_train": np.zeros((30, 7, 1, 1, 1))}, "x_train"),
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


def test_rows_of_features_are_images_of_one_pixel_with_a_scale_for_each_feature(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(30, 5)) * np.array([1, 10, 100, 1000, 0]) + 3
    data = load_data(write_npz(tmp_path / "rows.npz", x_train=rows, x_test=rows[:8]))
    assert data.input_shape == (5, 1, 1)
    spread = data.train.inputs().flatten(1).std(0, correction=0)
    torch.testing.assert_close(spread, torch.tensor([1.0, 1, 1, 1, 0]), atol=1e-5, rtol=0)


def test_a_nodes_own_examples_are_normalised_as_everybodys(tmp_path: Path) -> None:
    data = load_data(write_npz(tmp_path / "all.npz"))
    x = np.random.default_rng(2).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(7) % 4)
    own = load_own(str(tmp_path / "own.npz"), data)
    assert torch.equal(own.images, torch.from_numpy(x.transpose(0, 3, 1, 2)))
    assert own.labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert torch.equal(own.mean, data.train.mean)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((3, 6, 4, 3), np.uint8), "y": np.zeros(3, int)}, "but .* has"),
        ({"x": np.zeros((3, 6, 5, 3)), "y": np.zeros(3, int)}, "float32"),
        ({"x": np.zeros((3, 6, 5, 3), np.uint8), "y": np.full(3, 4)}, "class 4"),
        ({"x": np.zeros((3, 6, 5, 3), np.uint8)}, "lacks the arrays y"),
        (None, "there is no file"),
    ],
)
def test_a_nodes_own_examples_of_another_form_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray] | None, words: str
) -> None:
    data = load_data(write_npz(tmp_path / "all.npz"))
    if arrays is not None:
        np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=words):
        load_own(str(tmp_path / "own.npz"), data)


def test_the_path_of_a_nodes_own_examples_is_a_full_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="full path"):
        load_own("own.npz", load_data(write_npz(tmp_path / "all.npz")))
