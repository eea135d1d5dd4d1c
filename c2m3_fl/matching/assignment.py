"""The linear assignment problem: the permutation that maximises a sum of entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(gains: Tensor) -> Tensor:
    """Solve one linear assignment problem exactly.

    Parameters
    ----------
    gains
        Shape ``(size, size)``, on the CPU: what is gained by putting element j at place i.

    Returns
    -------
    Tensor
        LongTensor of shape ``(size,)``: the element for each place.

    Raises
    ------
    ValueError
        If an entry is NaN or positive infinity.
    """
    return torch.from_numpy(solve(gains.numpy()))


def solve(gains: NDArray[np.floating]) -> NDArray[np.int64]:
    """Solve one linear assignment problem exactly: `assign` on arrays.

    Notes
    -----
    Where each row's largest entry sits in another column, these entries are the optimum and no solver is needed: always
    so on copies of one network, often so late in a run. Otherwise SciPy's solver (Crouse 2016), which releases the
    interpreter's lock, so that threads solve several problems at once. A few Sinkhorn steps find nearly optimal prices
    of the columns; taken off the matrix they do not change its optimum, but shorten the solver's search by half or more.
    """
    best: NDArray[np.int64] = gains.argmax(axis=1)
    if np.bincount(best, minlength=len(best)).max(initial=0) == 1 and np.isfinite(gains).all():
        return best
    costs = gains.astype(np.float64)
    if len(gains) >= _PRICED_SIZE:
        costs -= _prices(gains)
    np.negative(costs, out=costs)
    found: NDArray[np.int64] = linear_sum_assignment(costs)[1]
    return found


_PRICED_SIZE = 128  # below it the prices cost more than they save
_SHARPNESS = 10.0  # entries are divided by their standard deviation over this, then exponentiated
_STEPS = 8
_LEAST_EXPONENT = -60.0  # keeps float32 sums from underflow


def _prices(gains: NDArray[np.floating]) -> NDArray[np.floating]:
    """Column prices from Sinkhorn's iteration (Cuturi 2013): nearly those of the assignment problem's dual."""
    scale = max(gains.std(ddof=1), np.finfo(gains.dtype).tiny) / _SHARPNESS
    kernel = np.exp(np.maximum((gains - gains.max(axis=1, keepdims=True)) / scale, _LEAST_EXPONENT))
    columns = np.ones_like(kernel[0])
    for _ in range(_STEPS):
        columns = 1.0 / (1.0 / (kernel @ columns) @ kernel)
    prices: NDArray[np.floating] = -scale * np.log(columns)
    return prices


def assign_all(gains: Iterable[Tensor], executor: ThreadPoolExecutor) -> Iterator[Tensor]:
    """Solve batches of assignment problems on threads while the next batch is still being computed.

    Parameters
    ----------
    gains
        Batches of shape ``(problems, size, size)`` on any device; consumed eagerly, so that the computation of one batch
        and the solution of the batches before it overlap.
    executor
        The threads.

    Yields
    ------
    Tensor
        Per batch, LongTensor of shape ``(problems, size)``, in the order of `gains`.
    """
    pending = [[executor.submit(assign, problem) for problem in batch.cpu()] for batch in gains]
    for batch in pending:
        yield torch.stack([future.result() for future in batch])
