"""The bare cost of a matcher's matrix products and assignments: the least time that its moves can take.

While a matcher runs, each product and each assignment that it asks for is done once more by itself, on operands that lie
ready in memory, and timed. Assignments that need no solver, because each row's largest entry sits in another column, count
nothing. Everything else that the matcher does (gathers, sums, line searches) is what it adds to the limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from c2m3_fl.matching import assignment, block_frank_wolfe, certificate, frank_wolfe, problem, tier, universe


@dataclass
class Limit:
    """CPU-seconds and numbers of the products and of the assignments."""

    products: float = 0.0
    assignments: float = 0.0
    product_calls: int = 0
    assignment_calls: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.products + self.assignments


@contextmanager
def measured_limit() -> Iterator[Limit]:
    """Within this context every matcher's products and assignments are timed by themselves."""
    limit, contracted, multiplied, solved = Limit(), problem.contract, problem.multiply, assignment.solve

    def timed(product: Callable[[], object]) -> None:
        start = time.thread_time()
        product()
        limit.products += time.thread_time() - start
        limit.product_calls += 1

    def contract(left: Tensor, right: Tensor, axis: int, dtype: torch.dtype | None = None) -> Tensor:
        a, b = (data.movedim(axis + 1, 1).flatten(2).to(dtype or data.dtype).contiguous() for data in (left, right))
        timed(lambda: torch.bmm(a, b.transpose(1, 2)))
        return contracted(left, right, axis, dtype)

    def multiply(left: Tensor, right: Tensor, total: Tensor) -> None:
        timed(lambda: torch.mm(left, right))
        multiplied(left, right, total)

    def solve(gains: NDArray[np.floating]) -> NDArray[np.int64]:
        start = time.thread_time()
        order = solved(gains)
        seconds = time.thread_time() - start
        rows = gains.argmax(axis=1)
        if len(np.unique(rows)) < len(rows):
            with limit.lock:
                limit.assignments += seconds
                limit.assignment_calls += 1
        return order

    with ExitStack() as stack:
        for module in (problem, certificate, frank_wolfe):
            stack.enter_context(patch.object(module, "contract", contract))
        for module in (problem, tier, universe):
            stack.enter_context(patch.object(module, "multiply", multiply))
        for module in (assignment, block_frank_wolfe, universe):
            stack.enter_context(patch.object(module, "solve", solve))
        yield limit
