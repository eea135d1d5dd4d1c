"""A network as the proof runs it: all in one precision, and without chance.

A layer that computes in single precision whatever its input has (RMSNorm in many a language model), or under autocast,
rounds more than the proof allows. And a draw that differs from element to element hides that the distribution of the
outputs is the same. So casts to a lower precision stay in the proof's own, and every random number is one fixed value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

_LOWER = {torch.float16, torch.bfloat16, torch.float32}
_LOWER_COMPLEX = {torch.complex32, torch.complex64}
_UNIFORM, _NORMAL = 0.37, 0.7
"""What stands for a draw from [0, 1) and from the standard normal distribution; zero would hide what it is added to."""


class Exact(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Run what is called in one floating type, with fixed values for random numbers.

    Parameters
    ----------
    dtype
        The type, real; complex numbers have the same precision.
    """

    supports_higher_order_operators = True

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operator, with its type raised and its chance removed."""
        given = dict(kwargs or {})
        if isinstance(func, HigherOrderOperator):
            return func(*args, **given)  # control flow: its branches run as they are
        wanted = given.get("dtype")
        if wanted in _LOWER and self.dtype != wanted:
            given["dtype"] = torch.promote_types(self.dtype, wanted)
        elif wanted in _LOWER_COMPLEX:
            given["dtype"] = self.dtype.to_complex()
        fixed = _FIXED.get(func._schema.name.removeprefix("aten::"))
        return func(*args, **given) if fixed is None else fixed(func, args, given)


def _filled(value: float) -> Callable[..., Tensor]:
    def fixed(func: Any, args: Any, kwargs: Any) -> Tensor:
        drawn: Tensor = func(*args, **kwargs)
        return drawn.fill_(value)

    return fixed


def _uniform(func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    low, high = args[1] if len(args) > 1 else 0.0, args[2] if len(args) > 2 else 1.0
    return args[0].fill_(low + _UNIFORM * (high - low))


def _normal_in_place(func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    mean, std = args[1] if len(args) > 1 else 0.0, args[2] if len(args) > 2 else 1.0
    return args[0].fill_(mean + _NORMAL * std)


def _normal(func: Any, args: Any, kwargs: Any) -> Any:
    mean, std = (*args, 1.0)[:2]
    if not isinstance(mean, Tensor) and not isinstance(std, Tensor):
        return func(*args, **kwargs).fill_(mean + _NORMAL * std)
    return mean + _NORMAL * std


def _bernoulli(func: Any, args: Any, kwargs: Any) -> Any:
    """The probability itself; where it is one for all, a success."""
    tensor, *rest = args
    if func._schema.name == "aten::bernoulli_":
        return tensor.copy_(rest[0]) if rest and isinstance(rest[0], Tensor) else tensor.fill_(1)
    return torch.ones_like(tensor) if rest else tensor.clone()


def _same(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0].clone()


def _kept(func: Any, args: Any, kwargs: Any) -> Any:
    """Dropout that drops nothing."""
    return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)


_FIXED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("rand", "rand_like"), _filled(_UNIFORM)),
    **dict.fromkeys(("randn", "randn_like"), _filled(_NORMAL)),
    **dict.fromkeys(("exponential_", "log_normal_", "cauchy_"), _filled(_NORMAL)),
    "uniform_": _uniform,
    "normal_": _normal_in_place,
    "normal": _normal,
    **dict.fromkeys(("bernoulli", "bernoulli_"), _bernoulli),
    "poisson": _same,
    "native_dropout": _kept,
}
