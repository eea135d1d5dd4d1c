"""Image data sets by name, as tensors in memory.

Images stay in the bytes they came in and are normalised when they are asked for, so that a process which serves a few
clients holds a quarter of the memory that floats would take. Normalisation is per channel, by the mean and the standard
deviation of the training images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DIGITS_TEST_FRACTION = 0.2
_DIGITS_SPLIT_SEED = 0
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


class DataError(ValueError):
    """A data set that does not exist, is not where it was looked for, or does not have the form it should have."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels, with the normalisation that turns images into a network's inputs.

    Attributes
    ----------
    images
        (N, C, H, W), uint8 or float32, as stored. Shared between all users of the process: not to be changed.
    labels
        (N,), int64, in 0 .. num_classes - 1.
    mean, std
        (C,), float32, of the *training* images.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> Split:
        """The examples at `indices` (a LongTensor), copied."""
        return Split(self.images[indices], self.labels[indices], self.mean, self.std)

    def inputs(self) -> Tensor:
        """The images as a network's inputs: (N, C, H, W), float32, normalised."""
        shape = (1, -1, 1, 1)
        return (self.images.float() - self.mean.view(shape)) / self.std.view(shape)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification.

    Attributes
    ----------
    name
        As given to `load_data`.
    train, test
        The two splits.
    num_classes
        Number of classes.
    """

    name: str
    train: Split
    test: Split
    num_classes: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


@dataclass(frozen=True)
class _Arrays:
    """Images (N, H, W) or (N, H, W, C) and labels (N,), as a source gives them."""

    x_train: np.ndarray[Any, Any]
    y_train: np.ndarray[Any, Any]
    x_test: np.ndarray[Any, Any]
    y_test: np.ndarray[Any, Any]


def _digits() -> _Arrays:
    from sklearn.datasets import load_digits  # noqa: PLC0415 (slow to import, needed by one data set)
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.images.astype(np.uint8),
        digits.target,
        test_size=_DIGITS_TEST_FRACTION,
        random_state=_DIGITS_SPLIT_SEED,
        stratify=digits.target,
    )
    return _Arrays(x_train, y_train, x_test, y_test)


def _torchvision(class_name: str, root: Path, download: bool, **options: str) -> _Arrays:
    import torchvision.datasets  # noqa: PLC0415 (slow to import, needed by some data sets)

    source = getattr(torchvision.datasets, class_name)
    try:
        train, test = (source(root, train=train, download=download, **options) for train in (True, False))
    except RuntimeError as error:
        raise DataError(
            f"torchvision's {class_name} is not in {root}. Set data-dir to the folder that holds it, or set "
            "download=true to fetch it there."
        ) from error
    return _Arrays(np.asarray(train.data), np.asarray(train.targets), np.asarray(test.data), np.asarray(test.targets))


def _emnist_letters(root: Path, download: bool) -> _Arrays:
    raw = _torchvision("EMNIST", root, download, split="letters")
    # The files hold the images transposed, and the letters' labels begin at 1.
    return _Arrays(raw.x_train.transpose(0, 2, 1), raw.y_train - 1, raw.x_test.transpose(0, 2, 1), raw.y_test - 1)


def _npz(path: Path) -> _Arrays:
    if not path.is_file():
        raise DataError(f"There is no file {path}. Set data-dir to the folder that holds it, or give its full path.")
    return _Arrays(*_read(path, _NPZ_KEYS))


def _read(path: Path, keys: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        missing = [key for key in keys if key not in archive.files]
        if missing:
            raise DataError(f"{path} lacks the arrays {', '.join(missing)}; it has {', '.join(archive.files)}.")
        return [archive[key] for key in keys]


_SOURCES: dict[str, Callable[[Path, bool], _Arrays]] = {
    "digits": lambda _root, _download: _digits(),
    "mnist": lambda root, download: _torchvision("MNIST", root, download),
    "fashion-mnist": lambda root, download: _torchvision("FashionMNIST", root, download),
    "emnist-letters": _emnist_letters,
    "cifar10": lambda root, download: _torchvision("CIFAR10", root, download),
    "cifar100": lambda root, download: _torchvision("CIFAR100", root, download),
}
DATASETS = tuple(_SOURCES)
"""Names that `load_data` knows, besides ``FILE.npz``."""


def _as_images(array: np.ndarray[Any, Any], where: str) -> Tensor:
    if array.ndim == 2:  # a table: each feature is a channel of one position, so that each has a scale of its own
        array = array[:, None, None, :]
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or 0 in array.shape:
        raise DataError(
            f"{where} must hold images (N, H, W) or (N, H, W, C), or rows of features (N, F), not an array of shape "
            f"{array.shape}."
        )
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(f"{where} holds values that are not finite.")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _as_labels(array: np.ndarray[Any, Any], count: int, where: str) -> Tensor:
    labels = np.asarray(array).reshape(-1)
    if not np.issubdtype(labels.dtype, np.integer) or len(labels) != count or labels.min() < 0:
        raise DataError(f"{where} must hold one non-negative integer for each of the {count} images.")
    return torch.from_numpy(labels.astype(np.int64))


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel; a constant channel gets 1, which leaves it at zero."""
    channels = images.transpose(0, 1).flatten(1)
    pairs = [torch.std_mean(channel.double(), correction=0) for channel in channels]
    std = torch.stack([pair[0] for pair in pairs]).float()
    mean = torch.stack([pair[1] for pair in pairs]).float()
    return mean, torch.where(std > 0, std, 1.0)


@lru_cache(maxsize=4)
def load_data(name: str, data_dir: str = "data", download: bool = False) -> ImageData:
    """Load a data set, once per process.

    Parameters
    ----------
    name
        ``"digits"`` (1,797 real handwritten digits of 8x8 pixels that ship with scikit-learn; one fifth, stratified,
        is the test set), ``"mnist"``, ``"fashion-mnist"``, ``"emnist-letters"``, ``"cifar10"``, ``"cifar100"``
        (torchvision's), or ``"FILE.npz"`` with arrays ``x_train, y_train, x_test, y_test``: images (N, H, W) or
        (N, H, W, C), or rows of features (N, F), which are read as images of F channels and one pixel; integer labels
        from 0.
    data_dir
        Folder in which torchvision's data sets, or the ``.npz`` file unless its path is absolute, are looked for.
    download
        Whether torchvision may download what is not there.

    Returns
    -------
    ImageData
        The data set. All callers share its tensors.

    Raises
    ------
    DataError
        If there is no such data set, or if what was found does not have the form above.
    """
    root = Path(data_dir).expanduser()
    if name.endswith(".npz"):
        arrays = _npz(root / Path(name).expanduser())
    elif name in _SOURCES:
        arrays = _SOURCES[name](root, download)
    else:
        raise DataError(f"There is no data set {name!r}. Choose one of {', '.join(DATASETS)} or FILE.npz.")
    x_train, x_test = _as_images(arrays.x_train, f"{name}: x_train"), _as_images(arrays.x_test, f"{name}: x_test")
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise DataError(
            f"{name}: training and test images differ: {tuple(x_train.shape[1:])} of {x_train.dtype}, "
            f"{tuple(x_test.shape[1:])} of {x_test.dtype}."
        )
    y_train = _as_labels(arrays.y_train, len(x_train), f"{name}: y_train")
    y_test = _as_labels(arrays.y_test, len(x_test), f"{name}: y_test")
    mean, std = _moments(x_train)
    return ImageData(
        name=name,
        train=Split(x_train, y_train, mean, std),
        test=Split(x_test, y_test, mean, std),
        num_classes=int(max(y_train.max(), y_test.max())) + 1,
    )


@lru_cache(maxsize=4)
def load_own(file: str, data: ImageData) -> Split:
    """A node's own examples, which take the place of a partition.

    Parameters
    ----------
    file
        Full path of an ``.npz`` with arrays ``x`` and ``y``, in the form of the run's data set.
    data
        The run's data set: its network and its normalisation are those of all clients.

    Raises
    ------
    DataError
        If there is no such file, or if its examples are of another form than the data set's.
    """
    path = Path(file).expanduser()
    if not path.is_absolute():
        raise DataError(f"The node's config names its data by {file!r}; give the full path.")
    if not path.is_file():
        raise DataError(f"The node's config names its data by {file!r}, where there is no file.")
    x, y = _read(path, ("x", "y"))
    images, train = _as_images(x, f"{file}: x"), data.train
    if images.shape[1:] != train.images.shape[1:] or images.dtype != train.images.dtype:
        raise DataError(
            f"{file}: examples of shape {tuple(images.shape[1:])} and {images.dtype}, but {data.name} has "
            f"{tuple(train.images.shape[1:])} of {train.images.dtype}."
        )
    labels = _as_labels(y, len(images), f"{file}: y")
    if int(labels.max()) >= data.num_classes:
        raise DataError(f"{file}: y holds class {int(labels.max())}; {data.name} has {data.num_classes} classes.")
    return Split(images, labels, train.mean, train.std)
