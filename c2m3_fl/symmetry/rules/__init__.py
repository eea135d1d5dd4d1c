"""What each operator of the ATen graph does to the symbols of its operands.

A rule promises: if the operands' elements are reordered as their axes say, so are the result's. It unifies or pins
axes until that holds. An operator without a rule pins all that it touches.
"""

from c2m3_fl.symmetry.rules import (
    attention,
    complex_numbers,
    indexing,
    noise,
    norms,
    pointwise,
    pooling,
    products,
    quantisation,
    recurrent,
    shapes,
    stacks,
)
from c2m3_fl.symmetry.rules.registry import Call, Names, apply, bind, fixed_like, pin_unknown, plain

__all__ = [
    "Call",
    "Names",
    "apply",
    "attention",
    "bind",
    "complex_numbers",
    "fixed_like",
    "indexing",
    "noise",
    "norms",
    "pin_unknown",
    "plain",
    "pointwise",
    "pooling",
    "products",
    "quantisation",
    "recurrent",
    "shapes",
    "stacks",
]
