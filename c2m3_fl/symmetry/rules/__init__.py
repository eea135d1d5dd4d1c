"""What each operator of the ATen graph does to the symbols of its operands.

A rule promises: if the operands' elements are reordered as their axes say, so are the result's. It unifies or pins
axes until that holds. An operator without a rule pins all that it touches.
"""

from c2m3_fl.symmetry.rules import (
    attention,
    indexing,
    norms,
    pointwise,
    pooling,
    products,
    recurrent,
    shapes,
    stacks,
)
from c2m3_fl.symmetry.rules.registry import Call, Names, apply

__all__ = [
    "Call",
    "Names",
    "apply",
    "attention",
    "indexing",
    "norms",
    "pointwise",
    "pooling",
    "products",
    "recurrent",
    "shapes",
    "stacks",
]
