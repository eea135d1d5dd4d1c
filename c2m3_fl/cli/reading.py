"""Reading a checkpoint file: tensors by name, and nothing that could run code."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from c2m3_fl.cli.errors import InputError, one_line

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""Where training checkpoints usually keep the state dict, the first that is there."""

PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put in front of names."""

SAFETENSORS = ".safetensors"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def read_tensors(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint, on the CPU, without the prefixes of wrappers.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or one that `torch.save` wrote: a state dict, or a training checkpoint with one inside.
    key
        Where it is inside, ``outer.inner`` for nested ones; None for the usual places.

    Raises
    ------
    InputError
        By the file's name: if it is damaged, holds no state dict, or objects other than plain data.
    """
    tensors = _safetensors(path) if path.suffix == SAFETENSORS else _state_dict(_unpickled(path), path, key)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise InputError(f"{path}: tensor {name!r} is sparse, quantised or without data, and cannot be averaged")
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return _unwrapped({name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _unpickled(path: Path) -> Any:
    try:
        # Mapped, so that an optimizer's state inside is not read. The older format cannot be.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        # torch's message is several paragraphs on how to load such a file all the same
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(
                f"{path} is refused: it holds {found.group(1)}, which is no plain data: loading it could run code. If you "
                "trust it, load it yourself and save model.state_dict() alone"
            ) from error
        raise _damaged(path, "it does not unpickle") from error
    except Exception as error:  # bytes of any kind make torch raise anything
        raise _damaged(path, error) from error


def _damaged(path: Path, error: object) -> InputError:
    cause = re.split(r"[.;] ", one_line(str(error)))[0] or type(error).__name__
    return InputError(f"{path} is damaged or no checkpoint: {cause}")


def _state_dict(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    if key is not None:
        for part in key.split("."):
            if not isinstance(content, Mapping) or part not in content:
                raise InputError(f"{path} has no {key!r}{_keys(content)}")
            content = content[part]
    elif isinstance(content, Mapping):
        usual = [content[each] for each in STATE_DICT_KEYS if isinstance(content.get(each), Mapping)]
        content = usual[0] if usual else content
    if not isinstance(content, Mapping) or not any(isinstance(each, Tensor) for each in content.values()):
        raise InputError(f"{path} holds no state dict where it is looked for{_keys(content)}; name its place by --key")
    if strange := [name for name, each in content.items() if not isinstance(each, Tensor)]:
        raise InputError(f"{path}: entry {strange[0]!r} is no tensor; if the state dict is elsewhere, name it by --key")
    return _unwrapped({str(name): tensor.detach() for name, tensor in content.items()}, path)


def _keys(content: Any) -> str:
    return f"; its keys are {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else ""


def _unwrapped(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = {name: name.replace("_orig_mod.", "") for name in tensors}
    while all(name.startswith("module.") for name in names.values()) and names:
        names = {name: stripped.removeprefix("module.") for name, stripped in names.items()}
    if len(set(names.values())) < len(names):
        raise InputError(f"{path} holds tensors whose names differ only by the prefixes {' and '.join(PREFIXES)}")
    return {names[name]: tensor for name, tensor in tensors.items()}
