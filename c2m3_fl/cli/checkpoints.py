"""Several checkpoint files of one network, read one at a time; and one written."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from c2m3_fl.cli.errors import InputError, one_line
from c2m3_fl.cli.progress import Progress
from c2m3_fl.cli.reading import PICKLES, SAFETENSORS, read_tensors

METADATA = "c2m3"
"""Under which name a written file tells, as JSON, how it was made."""


class Checkpoints(Sequence[dict[str, Tensor]]):
    """The networks of several files as state dicts of one module, each read when it is asked for and not kept.

    Computation is in the module's dtype, or in float64 where the files hold that. All files have the names, shapes and
    dtypes of the first.

    Parameters
    ----------
    paths
        The files.
    module
        The network; it is copied.
    key
        Where state dicts are inside training checkpoints.
    progress
        Is told which file is read.

    Raises
    ------
    InputError
        Naming the file: here if the first one does not fit the module, when a file is read if that one does not fit.
    """

    def __init__(self, paths: Sequence[Path], module: nn.Module, key: str | None, progress: Progress) -> None:
        self.paths = tuple(paths)
        self.module = copy.deepcopy(module).eval()
        self._key, self._progress = key, progress
        # buffers may be infinite by design, such as an attention mask
        self._parameters = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        first = read_tensors(paths[0], key)
        if any(tensor.dtype == torch.float64 for tensor in first.values()):
            self.module.double()
        self._expected = {name: (tensor.shape, tensor.dtype) for name, tensor in first.items()}
        self._fitted(first, paths[0])

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        path = self.paths[index]
        self._progress.note(f"reading {path.name}")
        tensors = read_tensors(path, self._key)
        self._check(tensors, path)
        return self._fitted(tensors, path)

    def _check(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        first = self.paths[0].name
        for name, (shape, dtype) in self._expected.items():
            if name not in tensors:
                raise InputError(f"{path} lacks tensor {name!r}, which {first} has: is it another network's?")
            if tensors[name].shape != shape:
                raise _other_shape(path, name, tensors[name].shape, f"{tuple(shape)} as in {first}")
            if tensors[name].dtype != dtype:
                raise InputError(f"{path}: tensor {name!r} is of {tensors[name].dtype}, not {dtype} as in {first}")
        if unknown := [name for name in tensors if name not in self._expected]:
            raise InputError(f"{path} has tensor {unknown[0]!r}, which {first} lacks: is it another network's?")

    def _fitted(self, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """The module's state dict with these values, by its own way of loading: old names and tied weights included."""
        own = self.module.state_dict()
        for name, tensor in tensors.items():
            if name in own and own[name].shape != tensor.shape:
                raise _other_shape(path, name, tensor.shape, f"{tuple(own[name].shape)} as in the module")
            if name in self._parameters and not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{path}: tensor {name!r} has entries that are NaN or infinite")
        try:
            result = self.module.load_state_dict(dict(tensors), strict=False)
        except Exception as error:
            raise InputError(f"{path} does not load into the module: {one_line(str(error))}") from error
        given = {own[name].data_ptr() for name in tensors if name in own}
        missing = [name for name in result.missing_keys if own[name].data_ptr() not in given]
        if missing:
            raise InputError(f"{path} lacks tensor {missing[0]!r} of the module: is it another network's?")
        if result.unexpected_keys:
            raise InputError(
                f"{path} has tensor {result.unexpected_keys[0]!r}, which the module lacks: another network's?"
            )
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def as_in_files(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the module with the dtypes of the files, and tied weights as often as they have them."""
        own = self.module.state_dict()
        held = {own[name].data_ptr() for name in self._expected if name in own}
        kept: dict[str, Tensor] = {}
        for name, tensor in state_dict.items():
            if name in self._expected:
                kept[name] = tensor.to(self._expected[name][1])
            elif own[name].data_ptr() not in held:
                kept[name] = tensor
        return kept


def _other_shape(path: Path, name: str, shape: Sequence[int], wanted: str) -> InputError:
    return InputError(f"{path}: tensor {name!r} has shape {tuple(shape)}, not {wanted}: another network's?")


def sources(paths: Sequence[Path]) -> list[dict[str, str]]:
    """What tells the files again: name and SHA-256."""
    return [{"file": path.name, "sha256": digest(path)} for path in paths]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output that cannot be written, before any work.

    Raises
    ------
    InputError
        If it exists and is not to be replaced, or its folder does not exist.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists; --force replaces it")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written: its folder does not exist, is read-only, or it is a folder itself")


def write_checkpoint(path: Path, like: Path, tensors: Mapping[str, Tensor], made: Mapping[str, Any]) -> None:
    """Write a state dict, whole or not at all.

    Parameters
    ----------
    path
        Where; its suffix tells the format.
    like
        The file whose format is used if the suffix tells nothing.
    tensors
        The state dict.
    made
        How it was made, as JSON under `METADATA`: in the metadata of a safetensors file; with `torch.save` in the state
        dict's ``_metadata[""]``, where modules keep theirs, so that ``load_state_dict`` takes the file as it is.
    """
    known = path.suffix == SAFETENSORS or path.suffix in PICKLES
    suffix = path.suffix if known else like.suffix
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if suffix == SAFETENSORS:
            plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(plain, partial, metadata={"format": "pt", METADATA: json.dumps(made)})
            _sort_metadata(partial)
        else:
            state_dict = OrderedDict(tensors)
            state_dict._metadata = OrderedDict({"": {"version": 1, METADATA: json.dumps(made)}})  # type: ignore[attr-defined]
            torch.save(state_dict, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _sort_metadata(path: Path) -> None:
    """Give a safetensors file's metadata an order: the library writes them in one that differs from call to call.

    The file begins with the length of its header, 8 bytes, and the header, JSON padded with blanks.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))
