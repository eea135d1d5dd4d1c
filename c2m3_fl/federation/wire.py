"""Between Flower's records and state dicts: what the federation calls the module's tensors, and reading without copies."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from c2m3_fl.errors import OptionError
from c2m3_fl.symmetry.wrappers import plain_name


@dataclass(frozen=True)
class Wire:
    """The tensors that are federated: all of the module's, or some.

    Attributes
    ----------
    names
        Of each tensor of the module that is sent, its name in records, in the records' order. Names in records may have
        the prefixes of compiled or parallel modules, or be numbers, as lists of NumPy arrays get them.
    """

    names: Mapping[str, str]

    @classmethod
    def of(cls, arrays: ArrayRecord, state_dict: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Wire:
        """Find the module's tensors in what is broadcast.

        Parameters
        ----------
        arrays
            What is broadcast.
        state_dict, parameters
            The module's tensors, and its parameters alone.

        Raises
        ------
        OptionError
            If an array belongs to no tensor of the module, or has another shape.
        """
        keys = list(arrays)
        if not keys:
            raise OptionError("the arrays to broadcast are empty: start from ArrayRecord(module.state_dict())")
        names: dict[str, str] = {}
        if _are_numbers(keys) and not set(keys) <= set(state_dict):
            own = next((names for names in (state_dict, parameters) if len(names) == len(keys)), None)
            if own is None:
                raise OptionError(
                    f"the arrays to broadcast are a list of {len(keys)}, the module has {len(state_dict)} tensors: start "
                    "from ArrayRecord(module.state_dict())"
                )
            names = dict(zip(own, keys, strict=True))
        else:
            plain = {plain_name(name): name for name in state_dict}
            for key in keys:
                name = key if key in state_dict else plain.get(plain_name(key))
                if name is None:
                    raise OptionError(
                        f"the arrays to broadcast hold {key!r}, which the module does not have: build the strategy with "
                        "the network whose state dict is broadcast"
                    )
                names[name] = key
        for name, key in names.items():
            if tuple(arrays[key].shape) != tuple(state_dict[name].shape):
                raise OptionError(
                    f"the arrays to broadcast hold {key!r} with shape {tuple(arrays[key].shape)}; the module's has shape "
                    f"{tuple(state_dict[name].shape)}: build the strategy with the network whose state dict is broadcast"
                )
        return cls(names)

    def read(self, record: ArrayRecord) -> dict[str, Tensor]:
        """A record's tensors under the module's names; unknown ones keep their own, which are errors further on."""
        keys = list(record)
        own = {key: name for name, key in self.names.items()}
        if _are_numbers(keys) and not set(keys) <= set(own):
            own = dict(zip(keys, self.names, strict=False))
        elif not set(keys) <= set(own):
            plain = {plain_name(key): name for key, name in own.items()}
            own = {key: own.get(key) or plain.get(plain_name(key), key) for key in keys}
        return {own.get(key, key): as_tensor(array) for key, array in record.items()}

    def write(self, state_dict: Mapping[str, Tensor]) -> ArrayRecord:
        """A record of tensors that have the module's names, under the federation's names."""
        return ArrayRecord({key: Array(state_dict[name].detach().cpu().numpy()) for name, key in self.names.items()})


def _are_numbers(keys: list[str]) -> bool:
    return keys == [str(index) for index in range(len(keys))]


def as_tensor(array: Array) -> Tensor:
    """A tensor that shares the memory of a record's array; it must not be written to.

    Raises
    ------
    ValueError
        If the bytes are no array.
    """
    stream = io.BytesIO(array.data)
    version = np.lib.format.read_magic(stream)
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    count = int(np.prod(shape, dtype=np.int64))
    values = np.frombuffer(array.data, dtype=dtype, count=count, offset=stream.tell()) if count else np.empty(0, dtype)
    values = values.reshape(shape, order="F" if fortran else "C")
    if not dtype.isnative:
        values = values.astype(dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)
