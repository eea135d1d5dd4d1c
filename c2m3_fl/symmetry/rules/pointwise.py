"""Elementwise functions, reductions and functions along one axis."""

from __future__ import annotations

from typing import Any

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.symbols import UNIT
from c2m3_fl.symmetry.tensors import Traced, broadcast, fixed, uniform

# Operators that torch tags as pointwise need no mention; these lack the tag in one form or another.
_POINTWISE = """
    _pointwise masked_fill where relu relu6 hardtanh
    hardswish threshold log_sigmoid copy fill zero _to_copy contiguous clone detach alias lift_fresh_copy lift_fresh
    square clip float_power true_divide subtract multiply divide rsub negative absolute arctan2 polar complex special_erf
    special_expit conj _conj resolve_conj resolve_neg _neg_view real imag
    greater less greater_equal less_equal not_equal fix
"""


@rule(*_POINTWISE.split())
def pointwise(call: Call) -> Traced:
    """Functions of the elements at one position, with broadcasting."""
    tensors = call.tensors
    if len(tensors) == 1:
        return tensors[0].with_axes(tensors[0].axes)
    return broadcast(tensors)


@rule("to", "type_as")
def cast(call: Call) -> Traced:
    """A change of type or device."""
    x = call.tensor("self")
    return x.with_axes(x.axes)


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "softmin")
def softmax(call: Call) -> Traced:
    """Normalising over an axis does not depend on its order."""
    x = call.tensor("self")
    return x.with_axes(x.axes)


@rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> Traced:
    """One slope for all channels, or one for each."""
    x, weight = call.tensor("self"), call.tensor("weight")
    if weight.ndim == 1 and symbols.size(weight.axes[0]) != 1:
        symbols.unify(x.axes[1 if x.ndim > 1 else 0], weight.axes[0])
    elif weight.ndim > 1:
        return broadcast([x, weight])
    return x.with_axes(x.axes)


@rule("glu")
def glu(call: Call) -> Traced:
    """The first half of an axis gated by the second."""
    x, dim = call.tensor("self"), call["dim"]
    n = x.shape[dim]
    value = symbols.positions(x.axes[dim], 0, n // 2)
    symbols.unify(value, symbols.positions(x.axes[dim], n // 2, n))
    axes = list(x.axes)
    axes[dim] = value
    return Traced(tuple(axes))


@rule(
    "mean",
    "sum",
    "nansum",
    "amax",
    "amin",
    "prod",
    "any",
    "all",
    "std",
    "var",
    "linalg_vector_norm",
    "norm",
    "logsumexp",
)
def reduce(call: Call) -> Traced:
    """A reduction does not depend on the order of what it reduces."""
    return _reduced(call, call.tensor("self"))


@rule("var_mean", "std_mean", "aminmax")
def reduce_to_pair(call: Call) -> list[Traced]:
    """Two reductions at once."""
    return [_reduced(call, call.tensor("self"))] * 2


@rule("max", "min", "median", "mode", "nanmedian")
def extremum(call: Call) -> Any:
    """The extreme element, with its index where a dimension is given; the elementwise form broadcasts."""
    if "other" in call.args:
        return broadcast(call.tensors)
    x = call.tensor("self")
    if call.args.get("dim") is None:
        return _reduced(call, x)
    _pin_dims(call, x)
    return [_reduced(call, x), _reduced(call, x)]


@rule("argmax", "argmin")
def arg_extremum(call: Call) -> Traced:
    """An index depends on the order of what it points into."""
    x = call.tensor("self")
    _pin_dims(call, x)
    return _reduced(call, x)


@rule("cumsum", "cumprod", "logcumsumexp", "flip", "roll", "tril", "triu")
def ordered(call: Call) -> Any:
    """Functions that depend on the order along some axes and keep the shape."""
    x = call.tensor("self")
    if call.name in ("aten::tril", "aten::triu"):
        dims = [x.ndim - 2, x.ndim - 1]
    else:
        dims = call.dims("dim" if "dim" in call.args else "dims")
    for dim in dims:
        symbols.pin(x.axes[dim], f"its order matters to {call.name}")
    return Traced(x.axes)


@rule("sort", "topk")
def sort(call: Call) -> list[Traced]:
    """Sorted elements and their indices."""
    x = call.tensor("self")
    dim = call["dim"] % x.ndim
    why = f"its order matters to {call.name}"
    symbols.pin(x.axes[dim], why)
    axes = list(x.axes)
    axes[dim] = symbols.pinned(call.shape[dim], why)
    return [Traced(tuple(axes)), Traced(tuple(axes))]


@rule(
    "zeros",
    "ones",
    "full",
    "new_zeros",
    "new_ones",
    "new_full",
    "zeros_like",
    "ones_like",
    "full_like",
    "scalar_tensor",
)
def filled(call: Call) -> Traced:
    """Tensors of one value."""
    if isinstance(call.args.get("fill_value"), Traced):
        return fixed(call.shape, "a filled tensor")
    return uniform(call.shape)


def _pin_dims(call: Call, x: Traced) -> None:
    for dim in call.dims():
        symbols.pin(x.axes[dim], f"its order matters to {call.name}")


def _reduced(call: Call, x: Traced) -> Traced:
    dims = call.dims()
    if call.args.get("keepdim"):
        return Traced(tuple(UNIT if dim in dims else extent for dim, extent in enumerate(x.axes)))
    return Traced(tuple(extent for dim, extent in enumerate(x.axes) if dim not in dims))
