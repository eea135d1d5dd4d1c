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
    interpreter's lock, so that threads solve several problems at once.
    """
    matrix: NDArray[np.floating] = gains.numpy()
    best = matrix.argmax(axis=1)
    if np.bincount(best, minlength=len(best)).max(initial=0) == 1 and np.isfinite(matrix).all():
        return torch.from_numpy(best)
    return torch.from_numpy(linear_sum_assignment(matrix, maximize=True)[1])


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
