"""Exact line search: along a step the objective is a polynomial, whose largest value on [0, 1] is found by its roots."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.polynomial import Polynomial


def along_step(values: Sequence[float]) -> Polynomial:
    r"""A multilinear function along a step that all of its k arguments make together.

    Parameters
    ----------
    values
        :math:`2^k` values; entry m is the function's with the arguments whose bits are set in m at the step's end, the
        others at its start.

    Returns
    -------
    Polynomial
        :math:`\sum_m v_m \alpha^{|m|} (1-\alpha)^{k-|m|}`.
    """
    degree = len(values).bit_length() - 1
    return Polynomial(np.asarray(values) @ _basis(degree))


@lru_cache
def _basis(degree: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Coefficients of each value's polynomial, shape ``(2 ** degree, degree + 1)``."""
    polynomials = [bernstein(moved.bit_count(), degree).coef for moved in range(1 << degree)]
    return np.stack(polynomials)


def bernstein(power: int, degree: int) -> Polynomial:
    r"""The polynomial :math:`\alpha^j (1-\alpha)^{k-j}`, without the binomial factor."""
    return Polynomial([0.0, 1.0]) ** power * Polynomial([1.0, -1.0]) ** (degree - power)


def maximise_on_unit_interval(polynomial: Polynomial) -> float:
    """Where a polynomial is largest on [0, 1]: at a root of its derivative or at an end.

    Among equal maxima the smallest is returned, so that a step that gains nothing is not made.
    """
    roots = polynomial.deriv().roots()
    real = roots[np.abs(roots.imag) < 1e-9].real
    candidates = np.concatenate([[0.0], np.sort(real[(real > 0.0) & (real < 1.0)]), [1.0]])
    return float(candidates[int(np.argmax(polynomial(candidates)))])
