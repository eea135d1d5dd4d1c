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

    Notes
    -----
    Where each row's largest entry sits in another column, these entries are the optimum and no solver is needed: always
    so on copies of one network, often so late in a run. Otherwise SciPy's solver (Crouse 2016), which releases the
    interpreter's lock, so that threads solve several problems at once. A few Sinkhorn steps find nearly optimal prices
    of the columns; taken off the matrix they do not change its optimum, but shorten the solver's search by half or more.
    """
    matrix: NDArray[np.floating] = gains.numpy()
    best = matrix.argmax(axis=1)
    if np.bincount(best, minlength=len(best)).max(initial=0) == 1 and np.isfinite(matrix).all():
        return torch.from_numpy(best)
    costs = matrix.astype(np.float64)
    if len(matrix) >= _PRICED_SIZE:
        costs -= _prices(gains).double().numpy()
    np.negative(costs, out=costs)
    return torch.from_numpy(linear_sum_assignment(costs)[1])


_PRICED_SIZE = 64  # below it the prices cost more than they save
_SHARPNESS = 10.0  # entries are divided by their standard deviation over this, then exponentiated
_STEPS = 8
_LEAST_EXPONENT = -60.0  # keeps float32 sums from underflow


def _prices(gains: Tensor) -> Tensor:
    """Column prices from Sinkhorn's iteration (Cuturi 2013): nearly those of the assignment problem's dual."""
    scale = gains.std().clamp_min(torch.finfo(gains.dtype).tiny) / _SHARPNESS
    kernel = ((gains - gains.amax(1, keepdim=True)) / scale).clamp_min_(_LEAST_EXPONENT).exp_()
    columns = torch.ones_like(kernel[0])
    for _ in range(_STEPS):
        columns = (kernel.T @ (kernel @ columns).reciprocal_()).reciprocal_()
    return -scale * columns.log()


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
