"""The table of rules, and the call that each of them gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.symbols import Extent
from c2m3_fl.symmetry.tensors import Stacked, Traced, fake_shape, fixed, pin_all, refreshed


@dataclass
class Names:
    """Hints, in the order of the graph, from which groups get their names.

    Attributes
    ----------
    produced
        Axes together with the parameter that produces their positions.
    roles
        Axes together with what their positions are, such as ``"heads"``.
    """

    produced: list[tuple[Extent, str]] = field(default_factory=list)
    roles: list[tuple[Extent, str]] = field(default_factory=list)

    def produce(self, extent: Extent, weight: Traced) -> None:
        """Note that a parameter produces the positions of an axis."""
        if weight.source is not None:
            self.produced.append((extent, weight.source))

    def role(self, extent: Extent, name: str) -> None:
        """Note what the positions of an axis are."""
        self.roles.append((extent, name))


@dataclass(frozen=True)
class Call:
    """One operator in the graph, with its arguments under the names of its schema.

    Attributes
    ----------
    name
        The operator, for example ``"aten::linear"``.
    args
        Every argument of the schema; those that the call leaves out have their defaults.
    node
        The graph's node.
    names
        Where rules leave hints for the names of groups.
    """

    name: str
    args: Mapping[str, Any]
    node: Node
    names: Names

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def tensor(self, name: str) -> Traced:
        """A tensor argument."""
        value = self.args[name]
        assert isinstance(value, Traced), f"{self.name} got {type(value).__name__} for {name!r}"
        return value

    def maybe(self, name: str) -> Traced | None:
        """A tensor argument that may be missing."""
        value = self.args.get(name)
        return value if isinstance(value, Traced) else None

    @property
    def tensors(self) -> list[Traced]:
        """All tensor arguments, those inside lists included."""
        return list(_tensors(self.args.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        value = self.node.meta.get("val")
        shape = fake_shape(value[0] if isinstance(value, (tuple, list)) else value)
        assert shape is not None, f"the graph knows no shape for {self.node.name}"
        return shape

    def dims(self, name: str = "dim", of: str = "self") -> list[int]:
        """Dimensions that an argument names, counted from the front; all of them where it names none."""
        ndim = self.tensor(of).ndim
        given = self.args.get(name)
        if given is None or given == []:
            return list(range(ndim))
        return sorted(d % ndim if ndim else 0 for d in ([given] if isinstance(given, int) else given))


_SIZES = {f"aten::{name}" for name in ("sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "size", "numel")}
"""Operators that read how large a tensor is, not what it holds."""

Rule = Callable[[Call], Any]
RULES: dict[str, Rule] = {}
STACKED: dict[str, Callable[[Call, Stacked], Any]] = {}
"""Rules for a `Stacked` first argument; other operators get its members joined."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for operators, ATen's where no library is named; an operator's in-place form shares it."""

    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name if "::" in name else f"aten::{name}"] = function
        return function

    return enter


def stacked_rule(*names: str) -> Callable[[Callable[[Call, Stacked], Any]], Callable[[Call, Stacked], Any]]:
    """Enter a rule for operators on a stacked tensor."""

    def enter(function: Callable[[Call, Stacked], Any]) -> Callable[[Call, Stacked], Any]:
        for name in names:
            STACKED[f"aten::{name}"] = function
        return function

    return enter


def apply(target: Any, args: Any, kwargs: Mapping[str, Any], node: Node, names: Names) -> Any:
    """Apply an operator's rule; `NotImplemented` where it has none that fits."""
    if not target._schema.returns and not target._schema.is_mutable:
        return None  # an assertion: it gives nothing that could reach the output
    bound = bind(target, args, kwargs)
    name, function = lookup(target)
    if name in _SIZES:
        return node.meta.get("val")
    stacked = next((value for value in bound.values() if isinstance(value, Stacked)), None)
    if stacked is not None and stacked is _first(bound) and name in STACKED:
        others = {key: plain(value, name) for key, value in bound.items() if value is not stacked}
        result = STACKED[name](Call(name, others, node, names), stacked)
        if result is not NotImplemented:
            return result
    if function is None:
        return NotImplemented
    try:
        result = function(Call(name, {key: plain(value, name) for key, value in bound.items()}, node, names))
    except Exception:  # sizes that depend on data, or an overload that the rule does not know: what follows is sound
        return NotImplemented
    several = isinstance(node.meta.get("val"), (tuple, list))
    return result if isinstance(result, (tuple, list)) == several else NotImplemented


def bind(target: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments under the names of the operator's schema, with defaults filled in."""
    bound: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def lookup(target: Any) -> tuple[str, Rule | None]:
    """Name of the rule for an operator, and the rule."""
    name: str = target._schema.name
    for candidate in (name, name.removesuffix("_")):
        if candidate in RULES:
            return candidate, RULES[candidate]
    if torch.Tag.pointwise in target.tags and torch.Tag.nondeterministic_seeded not in target.tags:
        return "aten::_pointwise", RULES["aten::_pointwise"]
    return name, None


def pin_unknown(node: Node, values: Iterable[Any]) -> tuple[Any, str | None]:
    """Pin all that an operator without a rule touches.

    Returns
    -------
    tuple
        The fixed result, and the name of the operator where something could have moved.
    """
    target = node.target
    name = target._schema.name if hasattr(target, "_schema") else getattr(target, "__name__", str(target))
    tensors = list(_tensors(plain(value, name) for value in values))
    touched = [extent for tensor in tensors for extent in tensor.axes]
    moved = any(symbols.reason(segment) is None for extent in touched for segment in symbols.expand(extent))
    for tensor in tensors:
        pin_all(tensor, f"used by {name}, for which there is no rule")
    return fixed_like(node.meta.get("val"), f"made by {name}"), name if moved else None


def fixed_like(value: Any, why: str) -> Any:
    """Fixed tensors in the place of those that the export recorded."""
    if isinstance(value, (tuple, list)):
        return [fixed_like(item, why) for item in value]
    shape = _static_shape(value)
    return value if shape is None else fixed(shape, why)


def _static_shape(value: Any) -> tuple[int, ...] | None:
    # A size that depends on data has no number; nothing moves there, so any will do.
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(n if isinstance(n, int) else 0 for n in value.shape)


def _first(bound: Mapping[str, Any]) -> Any:
    return next(iter(bound.values()))


def plain(value: Any, name: str) -> Any:
    """An argument as rules take it: stacks joined, uniform tensors with symbols of their own."""
    if isinstance(value, Stacked):
        return value.join(f"positions of a stack that {name} takes whole")
    if isinstance(value, Traced):
        return refreshed(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, name) for item in value]
    return value


def _tensors(values: Any) -> Iterator[Traced]:
    for value in values:
        if isinstance(value, Traced):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
