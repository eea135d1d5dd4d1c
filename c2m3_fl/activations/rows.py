"""The same sample of a layer's rows in every network: one row for each example and position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowSample:
    """Which rows of a layer's output are kept, shape ``(rows, channels)`` before the choice.

    All examples count alike: of each the same number of positions is kept, at equal distances from a random start; where
    fewer rows than examples are wanted, one position of some examples. The choice depends on an example's place in the
    calibration set, not on the division into batches.

    Attributes
    ----------
    examples
        Those of which rows are kept, ascending, shape ``(examples,)``.
    starts
        The random starts, in distances between positions: from 0 to 1, shape ``(examples,)``, float64.
    positions
        How many are kept of each example that has as many.
    """

    examples: Tensor
    starts: Tensor
    positions: int

    @classmethod
    def of(cls, rows: int, examples: int) -> RowSample:
        """A sample of about that many rows, if there are as many, of a calibration set of this many examples."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.arange(examples)
        if rows < examples:
            chosen = torch.randperm(examples, generator=generator)[:rows].sort().values
        starts = torch.rand(len(chosen), generator=generator, dtype=torch.float64)
        return cls(chosen, starts, max(1, -(-rows // examples)))

    def indices(self, first: int, size: int, rows: int) -> Tensor:
        """Indices of the kept rows among those of one batch.

        Parameters
        ----------
        first
            Place in the calibration set of the batch's first example.
        size
            Number of examples in the batch.
        rows
            Number of rows that the layer has for it.
        """
        inside = (self.examples >= first) & (self.examples < first + size)
        each = min(self.positions, max(1, -(-rows // size)))
        within = (torch.arange(each) + self.starts[inside, None]) / each
        places = ((self.examples[inside, None] - first + within) * (rows / size)).long()
        return places.flatten().clamp_max(rows - 1)

    def select(self, values: Tensor, axis: int, first: int, size: int) -> Tensor:
        """The kept rows of a batch's output whose channels lie along one axis, shape ``(rows, channels)``; a copy."""
        rows = values.movedim(axis, -1).flatten(0, -2) if values.dim() > 1 else values.unsqueeze(0)
        found = rows[self.indices(first, size, len(rows)).to(values.device)]
        return found if found.dtype == torch.float64 else found.float()
