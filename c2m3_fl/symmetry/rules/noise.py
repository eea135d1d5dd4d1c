"""Random draws.

Elements that are drawn independently and alike may change places: the distribution of the result stays what it was. Such a
tensor carries symbols of its own, and whatever meets it twice has to move alike.
"""

from __future__ import annotations

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules.registry import Call, rule
from c2m3_fl.symmetry.tensors import Traced, broadcast

_EMPTY = ("empty", "empty_like", "new_empty", "empty_strided", "empty_permuted")
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "rrelu")


@rule("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", *_EMPTY)
def drawn(call: Call) -> Traced:
    """Elements that do not depend on anything."""
    return Traced(tuple(symbols.free(n) for n in call.shape))


@rule("normal_", "uniform_", "exponential_", "random_", "cauchy_", "log_normal_", "geometric_")
def drawn_in_place(call: Call) -> Traced:
    """The same, written over what was there."""
    return Traced(call.tensor("self").axes)


@rule("normal", "bernoulli", "poisson", "binomial", "rrelu_with_noise", *_DROPOUTS)
def drawn_for_each(call: Call) -> object:
    """Elements of which each depends on those of the operands at its position."""
    result = broadcast(call.tensors) if call.tensors else Traced(tuple(symbols.free(n) for n in call.shape))
    # Equal parameters make no equal draws.
    result = Traced(result.axes)
    value = call.node.meta.get("val")
    return [result] * len(value) if isinstance(value, (tuple, list)) else result
