"""Which axes of which tensors carry which permutation group: plain data, how it acts on tensors, and how it is written.

What finds groups, proves them and explains them builds on this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from c2m3_fl.symmetry.axes import Axis, Factor, Permutations, Segment, SpecError

NOT_REACHED = "is not reached by `forward`"
"""Reason of a `Pin` for a parameter that takes no part in computing the output."""

_AXIS = re.compile(r"\[\d+\](?: \(in part\))?$")
_GROUP_NAME = re.compile(r"(?!\d+$)[^\s*+]+")
_AS_BITS = {
    **{torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64},
    **dict.fromkeys((torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz), torch.int8),
}
_FORMAT = "c2m3-permutation-spec"
_VERSION = 1


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

    @property
    def tensor(self) -> str:
        """Name of the tensor, where `what` is one or an axis of one."""
        return _AXIS.sub("", self.what)


@dataclass(frozen=True)
class PermutationGroups:
    """The permutation groups of one network, as data; `PermutationSpec` also finds and explains them.

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
    tied
        For each second name of a tied weight, its first one.

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
    tied: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", MappingProxyType(dict(self.groups)))
        object.__setattr__(self, "tensors", MappingProxyType({k: tuple(v) for k, v in self.tensors.items()}))
        object.__setattr__(self, "carried", frozenset(self.carried))
        object.__setattr__(self, "pins", tuple(self.pins))
        object.__setattr__(self, "tied", MappingProxyType(dict(self.tied)))
        self._check()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self.groups), dict(self.tensors), self.carried, self.pins, dict(self.tied))

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
        for second, first in self.tied.items():
            if second not in self.tensors or self.tensors[second] != self.tensors.get(first):
                raise SpecError(f"tensors {second!r} and {first!r} are tied, but the spec gives them different axes")

    @classmethod
    def from_axes(
        cls,
        groups: Mapping[str, int],
        tensors: Mapping[str, Sequence[str | int]],
        *,
        carried: Iterable[str] = (),
        pins: Iterable[Pin] = (),
        tied: Mapping[str, str] | None = None,
    ) -> Self:
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
        return cls(dict(groups), axes, frozenset(carried), tuple(pins), dict(tied or {}))

    def pinned(self, groups: Mapping[str, str]) -> Self:
        """The spec without some of its groups, each with the reason why; their positions are fixed."""
        if not groups:
            return self
        tensors = {
            name: tuple(Axis(tuple(_fixed(segment, groups) for segment in axis.segments)) for axis in axes)
            for name, axes in self.tensors.items()
        }
        left = {group: size for group, size in self.groups.items() if group not in groups}
        pins = (*(Pin(group, groups[group]) for group in self.groups if group in groups), *self.pins)
        return replace(self, groups=left, tensors=tensors, pins=pins)

    def restricted(self, names: Collection[str]) -> Self:
        """The spec of those tensors that clients send, where they keep the others to themselves.

        A group that also orders a tensor which is not sent stays where it is, so that a network made of the sent tensors,
        permuted, and of its own others computes what it did. Every other group moves.

        Parameters
        ----------
        names
            Names of the tensors that are sent. A weight that is sent under one of its names is sent under all of them.

        Returns
        -------
        PermutationSpec
            Of exactly these tensors; its `pins` name the groups that stay for this reason.

        Raises
        ------
        SpecError
            If the spec does not list a name.
        """
        sent = set(names)
        if unknown := sorted(sent - set(self.tensors)):
            raise SpecError(f"{_some(unknown)} cannot be sent: the spec does not list such tensors")
        weights = {self.tied.get(name, name) for name in sent}
        absent: dict[str, list[str]] = {}
        concerned: set[str] = set()
        for name, axes in self.tensors.items():
            here = {factor.group: None for factor in _factors(axes) if factor.group is not None}
            if name in sent:
                concerned.update(here)
            if self.tied.get(name, name) not in weights:
                for group in here:
                    absent.setdefault(group, []).append(name)
        spec = self.pinned({group: f"also orders {_some(t, 1)}, not sent" for group, t in absent.items()})
        at_home = {*self.tensors, *absent} - sent - concerned
        tied = {second: first for second, first in self.tied.items() if {first, second} <= sent}
        return replace(
            spec,
            tensors={name: axes for name, axes in spec.tensors.items() if name in sent},
            # A weight that is sent under its second name alone is measured under it.
            carried=frozenset(name for name in self.carried & sent if name in tied or name not in self.tied),
            pins=tuple(pin for pin in spec.pins if pin.tensor not in at_home),
            tied=tied,
        )

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
                    result = _selected(result, dim, index.to(result.device))
            mapped[name] = result.clone() if result.data_ptr() == tensor.data_ptr() else result
        return mapped

    def moved_tensors(self) -> list[str]:
        """Names of the tensors that some group moves."""
        return [name for name, axes in self.tensors.items() if any(axis.groups for axis in axes)]

    def to_json(self) -> str:
        """Write the spec as JSON; `from_json` reads it back."""
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "groups": dict(self.groups),
            "tensors": {name: [str(axis) for axis in axes] for name, axes in self.tensors.items()},
            "carried": sorted(self.carried),
            "tied": dict(self.tied),
            "pins": [{"what": pin.what, "reason": pin.reason} for pin in self.pins],
        }
        return json.dumps(document, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
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
                tied=document.get("tied", {}),
            )
        except (KeyError, TypeError) as error:
            raise SpecError(f"the permutation spec is incomplete or malformed: {error!r}") from error


def _selected(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    if tensor.dtype in _AS_BITS:  # torch does not index these
        return tensor.view(_AS_BITS[tensor.dtype]).index_select(dim, index).view(tensor.dtype)
    return tensor.index_select(dim, index)


def _fixed(segment: Segment, groups: Collection[str]) -> Segment:
    return Segment(tuple(Factor(f.size) if f.group in groups else f for f in segment.factors))


def _factors(axes: Iterable[Axis]) -> Iterator[Factor]:
    for axis in axes:
        for segment in axis.segments:
            yield from segment.factors


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
