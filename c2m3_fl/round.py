"""A round's clients as one value: checked once, put in an order of their own once, and trusted from there on."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from c2m3_fl.errors import ClientError
from c2m3_fl.layout import Layout, StateDict, examine, fitting, layout_of


@dataclass(frozen=True)
class Clients:
    """The clients of one round, in an order that depends on what they are and not on how they came.

    Sums of floating-point numbers and the moves of a matcher depend on the clients' order. Sorted by content, the same
    clients give the same bits however they came. The order rests on the clients' weights and the sums of their tensors;
    clients that tie in all of these, such as one network in several permutations, are compared byte by byte, and those
    that are equal there too are interchangeable.

    Attributes
    ----------
    state_dicts
        The tensors of each: equal names, shapes and dtypes; finite, but for entries that are infinite by design.
    weights
        One each, from 0 to 1, the largest being 1.
    positions
        Which of the caller's clients each is.
    alike
        Names of tensors that all clients hold alike, to the bit.
    layout
        What the clients' tensors are.
    """

    state_dicts: Sequence[StateDict] = field(repr=False)
    weights: tuple[float, ...]
    positions: tuple[int, ...]
    alike: frozenset[str] = field(repr=False)
    layout: Layout = field(repr=False)

    def __len__(self) -> int:
        return len(self.weights)

    @classmethod
    def of(
        cls,
        state_dicts: Sequence[Mapping[str, Any]],
        weights: Sequence[float] | None = None,
        layout: Layout | None = None,
    ) -> Clients:
        """Check clients and put them in order.

        Parameters
        ----------
        state_dicts
            Tensors, or NumPy arrays, by name. The sequence may load each when it is asked for.
        weights
            One non-negative, finite weight per client, not all zero; None for equal weights. Only their ratios matter.
        layout
            What the tensors must be; None for those of the first client.

        Raises
        ------
        ClientError
            Naming the first client, by position, that cannot be merged with the others, or whose weight is unusable.
        """
        if len(state_dicts) == 0:
            raise ClientError("there are no clients to merge")
        wanted = layout if layout is not None else layout_of(_tensors(state_dicts[0]))
        source, sums = _examined(state_dicts, wanted)
        if layout is None:
            _check_infinite(source, wanted)
        return cls.ordered(source, checked_weights(weights, len(sums)), sums, wanted)

    @classmethod
    def ordered(
        cls,
        state_dicts: Sequence[StateDict],
        weights: Sequence[float],
        sums: Sequence[tuple[float, ...]],
        layout: Layout,
    ) -> Clients:
        """Put clients that were examined in order."""
        largest = max(weights)
        # A sum of huge weights would overflow; a weight that counts must not vanish beside a huge one.
        shares = [max(weight / largest, sys.float_info.min) if weight > 0 else 0.0 for weight in weights]

        def compare(a: int, b: int) -> int:
            first, second = (_sortable(sums[a]), shares[a]), (_sortable(sums[b]), shares[b])
            return (first > second) - (first < second) or _compare(state_dicts[a], state_dicts[b])

        order = sorted(range(len(sums)), key=functools.cmp_to_key(compare))
        return cls(
            state_dicts=_select(state_dicts, order),
            weights=tuple(shares[position] for position in order),
            positions=tuple(order),
            alike=_alike(state_dicts, sums, layout),
            layout=layout,
        )

    def subset(self, kept: Sequence[int]) -> Clients:
        """Some of the clients, by their numbers in this order."""
        weights = [self.weights[number] for number in kept]
        largest = max(weights)
        return replace(
            self,
            state_dicts=_select(self.state_dicts, kept),
            weights=tuple(weight / largest for weight in weights) if largest > 0 else tuple(weights),
            positions=tuple(self.positions[number] for number in kept),
        )

    def weighted(self, weights: Sequence[float]) -> Clients:
        """The same clients with other weights."""
        return replace(self, weights=tuple(weights))


def _examined(
    state_dicts: Sequence[Mapping[str, Any]], layout: Layout
) -> tuple[Sequence[StateDict], list[tuple[float, ...]]]:
    """Clients that fit the layout, and the sums of their tensors; clients that are not in memory do not stay there."""
    at_hand = isinstance(state_dicts, list | tuple)
    kept: list[StateDict] = []
    sums = []
    for position in range(len(state_dicts)):
        try:
            client = examine(state_dicts[position], layout)
        except ClientError as error:
            raise type(error)(f"client {position} cannot be merged: {error}") from None
        sums.append(client.sums)
        if at_hand:
            kept.append(client.state_dict)
    return kept if at_hand else _Selected(state_dicts, range(len(state_dicts)), layout), sums


def checked_weights(weights: Sequence[float] | None, clients: int) -> tuple[float, ...]:
    """Weights of clients, one each.

    Raises
    ------
    ClientError
        If there is another number of them, or one is negative or not finite, or all are zero.
    """
    if weights is None:
        return (1.0,) * clients
    if len(weights) != clients:
        raise ClientError(f"{len(weights)} weights were given for {clients} clients")
    checked = tuple(float(weight) for weight in weights)
    for position, weight in enumerate(checked):
        if not math.isfinite(weight) or weight < 0:
            raise ClientError(f"client {position} has weight {weight}; weights are finite and not negative")
    if not max(checked) > 0:
        raise ClientError("all clients have weight zero; at least one must count")
    return checked


class _Selected(Sequence[StateDict]):
    """Some of a sequence's clients, each read and converted when it is asked for."""

    def __init__(self, source: Sequence[Mapping[str, Any]], order: Sequence[int], layout: Layout) -> None:
        self._source, self._order, self._layout = source, list(order), layout

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> StateDict: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StateDict]: ...
    def __getitem__(self, index: int | slice) -> StateDict | Sequence[StateDict]:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        found = self._source[self._order[index]]
        return {name: fitting(name, found[name], expected) for name, expected in self._layout.items()}

    def select(self, numbers: Sequence[int]) -> _Selected:
        return _Selected(self._source, [self._order[number] for number in numbers], self._layout)


def _select(state_dicts: Sequence[StateDict], numbers: Sequence[int]) -> Sequence[StateDict]:
    if isinstance(state_dicts, _Selected):
        return state_dicts.select(numbers)
    return [state_dicts[number] for number in numbers]


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in state_dict.items()
    }


def _check_infinite(state_dicts: Sequence[StateDict], layout: Layout) -> None:
    """Without a model to compare with, what is infinite by design is so in every client, and never NaN."""
    for name, expected in layout.items():
        if expected.infinite is None:
            continue
        for position, state_dict in enumerate(state_dicts):
            if expected.infinite.isnan().any() or not torch.equal(
                torch.isfinite(state_dict[name]), torch.isfinite(expected.infinite)
            ):
                raise ClientError(
                    f"client {position} cannot be merged: tensor {name!r} has entries that are NaN or infinite, or other "
                    "ones than the first client's"
                )


def _sortable(sums: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(-math.inf if math.isnan(total) else total for total in sums)


def _compare(first: StateDict, second: StateDict) -> int:
    for name in first:
        if not torch.equal(first[name], second[name]):
            a, b = (_bytes(each[name]) for each in (first, second))
            if a != b:
                return -1 if a < b else 1
    return 0


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _alike(state_dicts: Sequence[StateDict], sums: Sequence[tuple[float, ...]], layout: Layout) -> frozenset[str]:
    """Tensors with equal sums in all clients, which are then compared entry by entry."""
    first = [np.float64(total).tobytes() for total in sums[0]]
    same = [all(np.float64(own[index]).tobytes() == total for own in sums) for index, total in enumerate(first)]
    names = [name for name, equal in zip(layout, same, strict=True) if equal]
    if names:
        reference = state_dicts[0]
        for position in range(1, len(state_dicts)):
            state_dict = state_dicts[position]
            names = [name for name in names if torch.equal(state_dict[name], reference[name])]
    return frozenset(names)
