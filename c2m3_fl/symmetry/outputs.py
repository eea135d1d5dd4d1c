"""The tensors in whatever a network returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_STATE = {"past_key_values", "mems", "cache_params", "encoder_last_hidden_state"}
"""What language models return for the next token to start from: their state, not their output."""
_NOT_ENTERED = (str, bytes, type, nn.Module, ModuleType, FunctionType, MethodType)


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor inside of a value, in a fixed order.

    Mappings, sequences, dataclasses and the attributes of other objects are entered, so that outputs of no class have to
    be registered with torch. What a language model keeps for its next call, such as cached keys and values, is
    left out.
    """
    return list(_found(value, set()))


def _found(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if value is None or isinstance(value, _NOT_ENTERED) or id(value) in seen or _is_cache(value):
        return
    # Only containers around the present one can hold it again: the same list twice is two outputs.
    seen = seen | {id(value)}
    for part in _parts(value):
        yield from _found(part, seen)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [item for key, item in value.items() if key not in _STATE]
    if isinstance(value, (Sequence, Set)):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value) if field.name not in _STATE]
    return [item for key, item in getattr(value, "__dict__", {}).items() if key not in _STATE]


def _is_cache(value: Any) -> bool:
    return any(base.__name__ == "Cache" for base in type(value).__mro__)
