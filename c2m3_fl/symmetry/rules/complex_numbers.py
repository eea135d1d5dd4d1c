"""Complex numbers as pairs of real ones, and Fourier transforms."""

from __future__ import annotations

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.tensors import Traced

_PARTS = "real and imaginary parts"
_FREQUENCIES = "the order along a Fourier transform"


@rule("view_as_complex")
def view_as_complex(call: Call) -> Traced:
    """The last axis, of size two, holds both parts of a number."""
    x = call.tensor("self")
    symbols.pin(x.axes[-1], _PARTS)
    return Traced(x.axes[:-1])


@rule("view_as_real")
def view_as_real(call: Call) -> Traced:
    """Both parts of a number along a new axis."""
    return Traced((*call.tensor("self").axes, symbols.pinned(2, _PARTS)))


@rule("_fft_c2c", "_fft_r2c", "_fft_c2r")
def fourier(call: Call) -> Traced:
    """Transforms along some axes; the others pass."""
    x = call.tensor("self")
    axes = list(x.axes)
    for dim in call.dims():
        symbols.pin(axes[dim], _FREQUENCIES)
        axes[dim] = symbols.pinned(call.shape[dim], _FREQUENCIES)
    return Traced(tuple(axes))
