"""Permutation groups of a network: which axes of which tensors move together.

A *permutation group* is one set of neurons (or channels, heads, ...). Reordering it leaves the network's function as it
is, provided that every axis of every tensor that carries the group is reordered alike (C2M3, section 2, "Weight-space
symmetries").

An axis is a concatenation of *segments*, a segment a product of *factors*, and a factor may carry a group. In writing:

- ``"hidden"``: the axis is the group ``hidden``;
- ``"784"``: 784 positions that never move;
- ``"channels*49"``: the flattened ``(channels, 7, 7)`` in front of a classifier;
- ``"4*hidden"``: the four stacked gates of an LSTM;
- ``"stem + branch + 3"``: a concatenation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

Permutations = Mapping[str, Tensor]
"""Per group, the LongTensor of indices by which `index_select` reorders every axis that carries the group."""

_GROUP_NAME = re.compile(r"(?!\d+$)[^\s*+]+")
_FORMAT = "c2m3-permutation-spec"
_VERSION = 1


class SpecError(ValueError):
    """A permutation spec, or a set of permutations, that is malformed or does not fit the tensors it is used on."""


@dataclass(frozen=True)
class Factor:
    """One factor of a segment: `size` positions, permuted by `group`, or fixed where `group` is None."""

    size: int
    group: str | None = None

    def __str__(self) -> str:
        return self.group if self.group is not None else str(self.size)


@dataclass(frozen=True)
class Segment:
    """A product of factors, the last one varying fastest."""

    factors: tuple[Factor, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return math.prod(factor.size for factor in self.factors)

    def __str__(self) -> str:
        return "*".join(map(str, self.factors))


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: a concatenation of segments."""

    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(segment.size for segment in self.segments)

    @property
    def groups(self) -> frozenset[str]:
        """Names of the groups that act on this axis."""
        return frozenset(f.group for s in self.segments for f in s.factors if f.group is not None)

    def __str__(self) -> str:
        return " + ".join(map(str, self.segments))

    @classmethod
    def parse(cls, text: str | int, groups: Mapping[str, int]) -> Axis:
        """Read an axis as written in the module's docstring.

        Parameters
        ----------
        text
            The axis in writing; an integer stands for a fixed axis of that size.
        groups
            Size of each group that the text may name.

        Raises
        ------
        SpecError
            If the text names an unknown group or is no axis.
        """

        def factor(word: str) -> Factor:
            word = word.strip()
            if word.isdecimal():
                return Factor(int(word))
            if word not in groups:
                raise SpecError(f"axis {text!r} names the group {word!r}; the known groups are {sorted(groups)}")
            return Factor(groups[word], word)

        segments = str(text).split("+")
        return cls(tuple(Segment(tuple(factor(word) for word in segment.split("*"))) for segment in segments))

    def index(self, permutations: Permutations) -> Tensor | None:
        """Positions to gather along this axis, or None where no permuted group acts on it.

        Returns
        -------
        Tensor or None
            LongTensor of shape ``(size,)`` on the CPU.
        """
        if not any(group in permutations for group in self.groups):
            return None
        pieces: list[Tensor] = []
        offset = 0
        for segment in self.segments:
            positions = torch.zeros(1, dtype=torch.long)
            for factor in segment.factors:
                if factor.group is not None and factor.group in permutations:
                    order = permutations[factor.group].cpu()
                else:
                    order = torch.arange(factor.size)
                positions = (positions[:, None] * factor.size + order[None, :]).reshape(-1)
            pieces.append(positions + offset)
            offset += segment.size
        return torch.cat(pieces)


@dataclass(frozen=True)
class Pin:
    """Something that could not move, and why.

    Attributes
    ----------
    what
        The group or the axes concerned, for example ``"conv1.weight[0]"``.
    reason
        Why it stays where it is.
    """

    what: str
    reason: str


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation groups of one network.

    Parameters
    ----------
    groups
        Size of each group.
    tensors
        For every tensor of the network's state dict, its axes. A tensor that no group moves is listed with fixed axes.
    carried
        Names of tensors that permutations move but that similarity of networks is not measured on: running statistics,
        counters, and second names of tied weights.
    pins
        What could not move and why: for `explain`, not part of the spec's identity.

    Raises
    ------
    SpecError
        If a name is malformed, a group acts on no tensor or its size disagrees with a factor that carries it.

    Notes
    -----
    Source: C2M3, sections 2 and 3; the factorised axes are ours.
    """

    groups: Mapping[str, int]
    tensors: Mapping[str, tuple[Axis, ...]]
    carried: frozenset[str] = frozenset()
    pins: tuple[Pin, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", MappingProxyType(dict(self.groups)))
        object.__setattr__(self, "tensors", MappingProxyType({k: tuple(v) for k, v in self.tensors.items()}))
        object.__setattr__(self, "carried", frozenset(self.carried))
        object.__setattr__(self, "pins", tuple(self.pins))
        self._check()

    def __reduce__(self) -> tuple[Any, ...]:
        return PermutationSpec, (dict(self.groups), dict(self.tensors), self.carried, self.pins)

    def _check(self) -> None:
        for group, size in self.groups.items():
            if not _GROUP_NAME.fullmatch(group):
                raise SpecError(
                    f"{group!r} cannot name a group: use a name without blanks, '*' and '+' that is not a number"
                )
            if size < 1:
                raise SpecError(f"group {group!r} has size {size}; a group has at least one element")
        used: set[str] = set()
        for name, axes in self.tensors.items():
            for factor in _factors(axes):
                if factor.group is None:
                    continue
                used.add(factor.group)
                if self.groups.get(factor.group) != factor.size:
                    raise SpecError(
                        f"tensor {name!r} carries the group {factor.group!r} with size {factor.size}, but the spec's "
                        f"groups say {self.groups.get(factor.group, 'nothing of it')}"
                    )
        if unused := sorted(set(self.groups) - used):
            raise SpecError(f"groups {unused} act on no tensor; leave them out")
        if unknown := sorted(self.carried - set(self.tensors)):
            raise SpecError(f"carried tensors {unknown} are not among the spec's tensors")

    @classmethod
    def from_axes(
        cls,
        groups: Mapping[str, int],
        tensors: Mapping[str, Sequence[str | int]],
        *,
        carried: Iterable[str] = (),
        pins: Iterable[Pin] = (),
    ) -> PermutationSpec:
        """Build a spec from axes in writing.

        Examples
        --------
        >>> spec = PermutationSpec.from_axes(
        ...     groups={"hidden": 8},
        ...     tensors={"0.weight": ("hidden", 4), "0.bias": ("hidden",), "2.weight": (3, "hidden"), "2.bias": (3,)},
        ... )
        >>> spec.groups["hidden"]
        8
        """
        axes = {name: tuple(Axis.parse(axis, groups) for axis in written) for name, written in tensors.items()}
        return cls(dict(groups), axes, frozenset(carried), tuple(pins))

    @classmethod
    def from_module(
        cls, module: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None, prove: bool = True
    ) -> PermutationSpec:
        """Find the groups of a network by tracing it, and prove them.

        Parameters
        ----------
        module
            The network. It is copied; its parameters, mode and everything else stay as they are.
        *inputs
            Example inputs of its `forward`, of the shapes that it will meet.
        kwargs
            Keyword arguments of its `forward`.
        prove
            Whether to test the groups by random permutations on the network's own outputs; a group that changes them
            is pinned.

        Returns
        -------
        PermutationSpec
            Its `pins` tell what could not move and why.

        Raises
        ------
        SpecError
            If the network cannot be traced, for example because its control flow depends on data.

        Examples
        --------
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> dict(PermutationSpec.from_module(net, torch.zeros(1, 4)).groups)
        {'0.out': 8}
        """
        # Tracing builds on this module.
        from c2m3_fl.symmetry.prove import prove as proved  # noqa: PLC0415
        from c2m3_fl.symmetry.trace import trace  # noqa: PLC0415

        spec = trace(module, inputs, kwargs or {})
        return proved(spec, module, inputs, kwargs or {}) if prove else spec

    def check(self, state_dict: Mapping[str, Tensor]) -> None:
        """Check that a state dict has exactly this spec's tensors and shapes.

        Raises
        ------
        SpecError
            Naming the tensor that is missing, unknown or of another shape.
        """
        if missing := sorted(set(self.tensors) - set(state_dict)):
            raise SpecError(
                f"the state dict lacks {_some(missing)}, which the spec lists: is it another network's spec?"
            )
        if unknown := sorted(set(state_dict) - set(self.tensors)):
            raise SpecError(f"the state dict has {_some(unknown)}, which the spec does not list")
        for name, axes in self.tensors.items():
            expected, shape = tuple(axis.size for axis in axes), tuple(state_dict[name].shape)
            if expected != shape:
                raise SpecError(f"tensor {name!r} has shape {shape}; the spec says {expected}")

    def check_permutations(self, permutations: Permutations) -> None:
        """Check that each entry is a permutation of its group.

        Raises
        ------
        SpecError
            Naming the group that is unknown, or whose indices are not a permutation of its size.
        """
        for group, order in permutations.items():
            if group not in self.groups:
                raise SpecError(f"unknown group {group!r}; the spec's groups are {sorted(self.groups)}")
            size = self.groups[group]
            if order.dtype != torch.long or order.shape != (size,):
                raise SpecError(
                    f"the permutation of group {group!r} must be a LongTensor of shape ({size},), "
                    f"not {order.dtype} of shape {tuple(order.shape)}"
                )
            if not torch.equal(order.cpu().sort().values, torch.arange(size)):
                raise SpecError(f"the indices given for group {group!r} are not a permutation of 0..{size - 1}")

    def identity(self) -> dict[str, Tensor]:
        """The permutations that leave everything where it is."""
        return {group: torch.arange(size) for group, size in self.groups.items()}

    def random(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Uniformly random permutations of all groups."""
        return {group: torch.randperm(size, generator=generator) for group, size in self.groups.items()}

    def apply(self, state_dict: Mapping[str, Tensor], permutations: Permutations) -> dict[str, Tensor]:
        """Reorder a network's tensors.

        Along each axis that carries a group, the result is `index_select` of the input by that group's indices.
        Groups that `permutations` leaves out stay as they are.

        Parameters
        ----------
        state_dict
            The network's tensors, with exactly this spec's names and shapes. Not changed.
        permutations
            Per group, a LongTensor of indices.

        Returns
        -------
        dict of str to Tensor
            New tensors, on the device and of the dtype of the input's.

        Raises
        ------
        SpecError
            If the state dict does not fit the spec or an entry is not a permutation of its group.
        """
        self.check(state_dict)
        self.check_permutations(permutations)
        mapped: dict[str, Tensor] = {}
        for name, tensor in state_dict.items():
            result = tensor.detach()
            for dim, axis in enumerate(self.tensors[name]):
                index = axis.index(permutations)
                if index is not None:
                    result = result.index_select(dim, index.to(result.device))
            mapped[name] = result.clone() if result.data_ptr() == tensor.data_ptr() else result
        return mapped

    def moved_tensors(self) -> list[str]:
        """Names of the tensors that some group moves."""
        return [name for name, axes in self.tensors.items() if any(axis.groups for axis in axes)]

    def explain(self) -> str:
        """Tables in plain text: groups, what they move, what share of the parameters that is, what stays and why."""
        from c2m3_fl.symmetry.explain import explain  # noqa: PLC0415  # it builds on this module

        return explain(self)

    def to_json(self) -> str:
        """Write the spec as JSON; `from_json` reads it back."""
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "groups": dict(self.groups),
            "tensors": {name: [str(axis) for axis in axes] for name, axes in self.tensors.items()},
            "carried": sorted(self.carried),
            "pins": [{"what": pin.what, "reason": pin.reason} for pin in self.pins],
        }
        return json.dumps(document, indent=2)

    @classmethod
    def from_json(cls, text: str) -> PermutationSpec:
        """Read a spec that `to_json` wrote.

        Raises
        ------
        SpecError
            If the text is not such a document.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"not a permutation spec: the text is no JSON ({error})") from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise SpecError(f'not a permutation spec: the JSON lacks "format": "{_FORMAT}"')
        if document.get("version") != _VERSION:
            raise SpecError(
                f"the spec has version {document.get('version')}, this release reads {_VERSION}: make it again"
            )
        try:
            return cls.from_axes(
                document["groups"],
                document["tensors"],
                carried=document["carried"],
                pins=[Pin(**pin) for pin in document["pins"]],
            )
        except (KeyError, TypeError) as error:
            raise SpecError(f"the permutation spec is incomplete or malformed: {error!r}") from error


def compose(first: Permutations, then: Permutations) -> dict[str, Tensor]:
    """The permutations whose `apply` equals applying `first` and then `then`."""
    return {group: order[then[group]] for group, order in first.items()}


def invert(permutations: Permutations) -> dict[str, Tensor]:
    """The permutations that undo `permutations`."""
    return {group: torch.argsort(order) for group, order in permutations.items()}


def _factors(axes: Iterable[Axis]) -> Iterator[Factor]:
    for axis in axes:
        for segment in axis.segments:
            yield from segment.factors


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
