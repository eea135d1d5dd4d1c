"""Exact line search: along a step the objective is a polynomial, whose largest value on [0, 1] is found by its roots."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray


def along_step(sums: Sequence[float]) -> Polynomial:
    r"""A multilinear function along a step that all of its k arguments make together.

    Parameters
    ----------
    sums
        k + 1 numbers; entry j is the sum of the function's values with any j arguments at the step's end, the others at its
        start.

    Returns
    -------
    Polynomial
        :math:`\sum_j s_j \alpha^j (1-\alpha)^{k-j}`.
    """
    return Polynomial(np.asarray(sums) @ _basis(len(sums) - 1))


@lru_cache
def _basis(degree: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Coefficients of each sum's polynomial, shape ``(degree + 1, degree + 1)``."""
    return np.stack([bernstein(power, degree).coef for power in range(degree + 1)])


@lru_cache
def bernstein(power: int, degree: int) -> Polynomial:
    r"""The polynomial :math:`\alpha^j (1-\alpha)^{k-j}`, without the binomial factor."""
    return Polynomial([0.0, 1.0]) ** power * Polynomial([1.0, -1.0]) ** (degree - power)


def maximise_on_unit_interval(polynomial: Polynomial) -> float:
    """Where a polynomial is largest on [0, 1]: at a root of its derivative or at an end.

    Among equal maxima the smallest is returned, so that a step that gains nothing is not made.
    """
    roots = _roots(polynomial.deriv().trim())
    real = roots[np.abs(roots.imag) < 1e-9].real
    candidates = np.concatenate([[0.0], np.sort(real[(real > 0.0) & (real < 1.0)]), [1.0]])
    return float(candidates[int(np.argmax(polynomial(candidates)))])


def _roots(polynomial: Polynomial) -> NDArray[np.complex128]:
    coefficients = np.asarray(polynomial.coef, dtype=np.complex128)
    if len(coefficients) == 2:  # of a parabola's derivative, which every step asks for
        return -coefficients[:1] / coefficients[1:]
    return np.asarray(polynomial.roots(), dtype=np.complex128)
