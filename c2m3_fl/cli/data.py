"""Data for the command line: arrays of an ``.npz`` file, or a folder of images."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from c2m3_fl.cli.errors import InputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_INPUTS, _TARGETS = ("x", "x_train", "x_test"), ("y", "y_train", "y_test")
_SEED = 0


@dataclass(frozen=True)
class Data:
    """Examples: inputs, and targets where there are any.

    Attributes
    ----------
    inputs
        Of shape ``(examples, ...)``, as the network takes them.
    targets
        ``(examples, ...)``: classes as LongTensor, or quantities.
    """

    inputs: Tensor
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def drawn(self, count: int) -> Data:
        """Some of the examples, the same ones each time; all for 0."""
        if count == 0 or count >= len(self):
            return self
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(_SEED))[:count].sort().values
        return Data(self.inputs[chosen], None if self.targets is None else self.targets[chosen])

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Batches ``(inputs, targets)``, or ``(inputs,)``."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield (self.inputs[part],) if self.targets is None else (self.inputs[part], self.targets[part])


def read_data(path: Path, dtype: torch.dtype, shape: str | None, mean: str | None, std: str | None) -> Data:
    """Read a file or a folder.

    Parameters
    ----------
    path
        An ``.npz`` file with an array ``x`` (or ``x_train``, ``x_test``) and, if known, ``y``; or a folder of images, whose
        subfolders, if it has any, are the classes in alphabetical order (torchvision's ``ImageFolder``).
    dtype
        Of inputs that are floating-point numbers. Bytes become numbers from 0 to 1, other integers int64.
    shape
        For images ``N,C,H,W``: C channels, and the middle of each image scaled to H by W; None for RGB as they are.
    mean, std
        Per channel, comma-separated: subtracted, and divided by.

    Raises
    ------
    InputError
        Naming what cannot be read.
    """
    data = _folder(path, shape) if path.is_dir() else _npz(path)
    inputs = data.inputs
    if inputs.dtype == torch.uint8:
        inputs = inputs.float() / 255
    if mean is not None or std is not None:
        inputs = (inputs - _channels(mean, "0", inputs)) / _channels(std, "1", inputs)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs.long()
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise InputError(f"{path}: inputs are NaN or infinite")
    return Data(inputs, data.targets)


def _channels(text: str | None, default: str, inputs: Tensor) -> Tensor:
    try:
        values = torch.tensor([float(each) for each in (text or default).split(",")])
        return values.view(-1, *[1] * (inputs.dim() - 2)).expand(inputs.shape[1], *[1] * (inputs.dim() - 2))
    except (ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"{text!r} is not one number per channel of inputs of shape {tuple(inputs.shape)}") from error


def _npz(path: Path) -> Data:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            found = next((name for name in _INPUTS if name in names), names[0] if len(names) == 1 else None)
            if found is None:
                raise InputError(f"{path} has no array x or x_train; its arrays are {', '.join(names)}")
            target = next((name for name in (found.replace("x", "y", 1), *_TARGETS) if name in names), None)
            inputs = _tensor(archive[found], path, found)
            targets = None if target is None else _tensor(archive[target], path, target)
    except InputError:
        raise
    except (ValueError, TypeError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged, or no .npz file of plain arrays: {error}") from error
    if targets is not None:
        targets = targets.reshape(-1) if targets.dim() == 2 and targets.shape[1] == 1 else targets
        targets = targets if targets.is_floating_point() else targets.long()
        if len(targets) != len(inputs):
            raise InputError(f"{path} has {len(inputs)} inputs {found} and {len(targets)} targets {target}")
    return Data(inputs, targets)


def _tensor(array: npt.NDArray[Any], path: Path, name: str) -> Tensor:
    if array.ndim == 0 or len(array) == 0:
        raise InputError(f"{path}: the array {name} holds no example")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: the array {name} is of {array.dtype}, not of numbers")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def _folder(path: Path, shape: str | None) -> Data:
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in IMAGES)
    if not files:
        raise InputError(f"{path} holds no images ({', '.join(IMAGES)})")
    classes = sorted({each.relative_to(path).parts[0] for each in files if each.parent != path})
    size = None if shape is None else _size(shape)
    inputs = [_image(each, size) for each in files]
    if odd := [file for file, image in zip(files, inputs, strict=True) if image.shape != inputs[0].shape]:
        raise InputError(f"{odd[0]} has another size than {files[0]}; --input 1,C,H,W scales all images to one")
    labelled = bool(classes) and all(each.parent != path for each in files)
    targets = torch.tensor([classes.index(each.relative_to(path).parts[0]) for each in files]) if labelled else None
    return Data(torch.stack(inputs), targets)


def _size(shape: str) -> tuple[int, int, int]:
    sizes = shape.partition(":")[0].split(",")
    if len(sizes) != 4 or not all(each.isdecimal() and int(each) for each in sizes) or sizes[1] not in ("1", "3"):
        raise InputError(f"--input {shape!r} is no shape of images, such as 1,3,224,224 (1 or 3 channels)")
    _, channels, height, width = map(int, sizes)
    return channels, height, width


def _image(path: Path, size: tuple[int, int, int] | None) -> Tensor:
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415  # only those who give images need it
    except ImportError as error:
        raise InputError("images need pillow: pip install pillow") from error
    try:
        with Image.open(path) as file:
            image = file.convert("L" if size is not None and size[0] == 1 else "RGB")
        if size is not None:
            image = ImageOps.fit(image, (size[2], size[1]), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is damaged or no image: {error}") from error
    pixels = np.array(image)
    return torch.from_numpy(pixels[..., None] if pixels.ndim == 2 else pixels).permute(2, 0, 1).contiguous()
