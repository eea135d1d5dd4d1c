"""Linear maps, convolutions and other contractions."""

from __future__ import annotations

from typing import Any

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.symbols import Extent
from c2m3_fl.symmetry.tensors import Traced, broadcast

_SPATIAL = "spatial positions of a convolution"
_KERNEL = "positions inside a convolution's kernel"


@rule("linear")
def linear(call: Call) -> Traced:
    """Contract the last axis with the weight's input axis."""
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.maybe("bias")
    symbols.unify(x.axes[-1], weight.axes[-1])
    if weight.ndim == 1:
        return Traced(x.axes[:-1])
    if bias is not None:
        _unify_wide(weight.axes[0], bias.axes[-1])
    call.names.produce(weight.axes[0], weight)
    return Traced((*x.axes[:-1], weight.axes[0]))


@rule("conv1d", "conv2d", "conv3d")
def convolution(call: Call) -> Traced:
    """Contract channels within each group; positions in space and in the kernel stay."""
    x, weight, groups = call.tensor("input"), call.tensor("weight"), call["groups"]
    space = weight.ndim - 2
    channels = x.axes[x.ndim - space - 1]
    out = weight.axes[0]
    if groups == 1:
        symbols.unify(channels, weight.axes[1])
    else:
        group, inside = symbols.split_trailing(channels, weight.shape[1])
        out_group, out_inside = symbols.split_trailing(out, symbols.size(out) // groups)
        symbols.unify(inside, weight.axes[1])
        symbols.unify(group, out_group)
        call.names.role(group, "groups")
        call.names.role(inside, "inner")
        call.names.role(out_inside, "inner")
    return _convolved(call, x, weight, out)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> Traced:
    """As `convolution`, with the weight's first two axes exchanged."""
    x, weight, groups = call.tensor("input"), call.tensor("weight"), call["groups"]
    space = weight.ndim - 2
    channels = x.axes[x.ndim - space - 1]
    symbols.unify(channels, weight.axes[0])
    out = weight.axes[1]
    if groups > 1:
        group, _ = symbols.split_trailing(channels, symbols.size(channels) // groups)
        out = symbols.product([group, out])
        call.names.role(group, "groups")
    return _convolved(call, x, weight, out)


def _convolved(call: Call, x: Traced, weight: Traced, out: Extent) -> Traced:
    space = weight.ndim - 2
    batch = x.axes[: x.ndim - space - 1]
    bias = call.maybe("bias")
    if bias is not None:
        symbols.unify(out, bias.axes[0])
    call.names.produce(out, weight)
    for extent in weight.axes[2:]:
        symbols.pin(extent, _KERNEL)
    for extent in x.axes[x.ndim - space :]:
        symbols.pin(extent, _SPATIAL)
    return Traced((*batch, out, *(symbols.pinned(n, _SPATIAL) for n in call.shape[-space:])))


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "linalg_matmul")
def matmul(call: Call) -> Traced:
    """Contract the last axis of the first with the last but one of the second; batch axes broadcast."""
    a, b = (value for value in call.args.values() if isinstance(value, Traced))
    return _matmul(call, a, b)


@rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(call: Call) -> Any:
    """Rows sorted by expert, each times the matrix of its own."""
    x, weight, *others = call.tensors
    if (x.ndim, weight.ndim, len(others)) != (2, 3, 1):
        return NotImplemented
    symbols.unify(x.axes[1], weight.axes[1])
    for extent in (x.axes[0], weight.axes[0], others[0].axes[0]):
        symbols.pin(extent, "rows are sorted by the expert they go to")
    call.names.produce(weight.axes[2], weight)
    return Traced((x.axes[0], weight.axes[2]))


@rule("addmm", "baddbmm", "addmv")
def add_matmul(call: Call) -> Any:
    """A matrix product added to a tensor."""
    first, a, b = call.tensors
    return broadcast([first, _matmul(call, a, b)])


@rule("addbmm")
def add_sum_of_matmuls(call: Call) -> Any:
    """Matrix products, summed over their batch and added to a tensor."""
    first, a, b = call.tensors
    return broadcast([first, Traced(_matmul(call, a, b).axes[1:])])


@rule("outer", "ger", "addr")
def outer(call: Call) -> Traced:
    """Every element of one vector with every one of another."""
    *added, a, b = call.tensors
    return broadcast([*added, Traced((a.axes[0], b.axes[0]))])


@rule("inner")
def inner(call: Call) -> Any:
    """Contract the last axes; all others of both stay."""
    a, b = call.tensors
    if not a.ndim or not b.ndim:
        return NotImplemented
    symbols.unify(a.axes[-1], b.axes[-1])
    return Traced((*a.axes[:-1], *b.axes[:-1]))


@rule("cdist", "_euclidean_dist")
def distances(call: Call) -> Traced:
    """Distances between rows do not depend on the order inside of them."""
    a, b = call.tensors
    symbols.unify(a.axes[-1], b.axes[-1])
    batch = broadcast([Traced(a.axes[:-2]), Traced(b.axes[:-2])]).axes
    return Traced((*batch, a.axes[-2], b.axes[-2]))


def _matmul(call: Call, a: Traced, b: Traced) -> Traced:
    inner = b.axes[-2] if b.ndim > 1 else b.axes[0]
    symbols.unify(a.axes[-1], inner)
    batch = broadcast([Traced(a.axes[:-2]), Traced(b.axes[:-2])]).axes
    rows = a.axes[-2:-1] if a.ndim > 1 else ()
    columns = b.axes[-1:] if b.ndim > 1 else ()
    if batch:
        name_attention(call, batch, inner, columns[0] if columns else inner)
    elif columns:
        call.names.produce(columns[0], b)
    return Traced((*batch, *rows, *columns))


def name_attention(call: Call, batch: tuple[Extent, ...], inner: Extent, columns: Extent) -> None:
    """Hints for products of activations, which are nearly always attention's."""
    for extent in batch:
        call.names.role(extent, "heads")
    call.names.role(inner, "qk")
    call.names.role(columns, "v")


@rule("einsum")
def einsum(call: Call) -> Any:
    """Unify the axes under each letter."""
    equation = call["equation"].replace(" ", "")
    if "." in equation:
        return NotImplemented  # its own decomposition does
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = left.replace(",", "")
        right = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    axes: dict[str, Extent] = {}
    for letters, tensor in zip(left.split(","), call.tensors, strict=True):
        for letter, extent in zip(letters, tensor.axes, strict=True):
            if letter not in axes or symbols.size(axes[letter]) == 1:
                axes[letter] = extent
            else:
                _unify_wide(axes[letter], extent)
    for tensor in call.tensors:
        call.names.produce(next((axes[x] for x in reversed(right)), symbols.UNIT), tensor)
    for letter, extent in axes.items():
        if all(letter in letters for letters in left.split(",")):
            call.names.role(extent, "heads" if letter in right else "qk")
    return Traced(tuple(axes[letter] for letter in right))


@rule("bilinear")
def bilinear(call: Call) -> Traced:
    """Contract two inputs with a weight of three axes."""
    a, b, weight, bias = (call.maybe(name) for name in ("input1", "input2", "weight", "bias"))
    assert a is not None
    assert b is not None
    assert weight is not None
    symbols.unify(a.axes[-1], weight.axes[1])
    symbols.unify(b.axes[-1], weight.axes[2])
    if bias is not None:
        symbols.unify(weight.axes[0], bias.axes[0])
    call.names.produce(weight.axes[0], weight)
    return Traced((*broadcast([Traced(a.axes[:-1]), Traced(b.axes[:-1])]).axes, weight.axes[0]))


def _unify_wide(a: Extent, b: Extent) -> None:
    if symbols.size(a) != 1 and symbols.size(b) != 1:
        symbols.unify(a, b)
