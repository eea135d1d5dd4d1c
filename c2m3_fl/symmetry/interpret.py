"""A recorded graph, run on symbols."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from c2m3_fl.symmetry import rules
from c2m3_fl.symmetry.decompose import decomposed
from c2m3_fl.symmetry.rules import Names
from c2m3_fl.symmetry.tensors import Stacked, Traced, fixed, pin_all, unify_axes

_INLINED = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4, "tag_activation_checkpoint": 0}
"""Operators that merely call a subgraph, and where among their arguments it is."""
_RESHAPING = {"t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "detach_"}
"""Operators in place that change how a tensor is seen, not its elements."""

_TIED = {"_fused_moving_avg_obs_fq_helper", "fused_moving_avg_obs_fake_quant"}
"""Operators whose rule itself ties what they write to."""


@dataclass
class Interpreter:
    """Runs graphs on symbols and collects what they tell.

    Attributes
    ----------
    names
        Hints for the groups' names.
    unknown
        Operators without a rule that pinned something, each with the module that calls it.
    """

    names: Names = field(default_factory=Names)
    unknown: list[tuple[str, str]] = field(default_factory=list)

    def run(self, module: fx.GraphModule, inputs: Sequence[Any], caller: str | None = None) -> Any:
        """Results of a graph for inputs on symbols; `caller` is the module that calls it, where the graph does not say."""
        env: dict[fx.Node, Any] = {}
        mutated = _mutated(module.graph)
        feed = iter(inputs)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                value = next(feed)
            elif node.op == "get_attr":
                value = _attribute(module, node)
            elif node.op == "call_function":
                value = self._call(node, env, caller or _caller(node))
            else:
                return _mapped(node.args[0], env)
            if isinstance(value, Traced) and value.uniform and node in mutated:
                value = Traced(value.axes)
            env[node] = value
        return None

    def _call(self, node: fx.Node, env: Mapping[fx.Node, Any], caller: str) -> Any:
        args, kwargs = _mapped(node.args, env), _mapped(node.kwargs, env)
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = getattr(node.target, "__name__", "")
        if isinstance(node.target, torch._ops.OpOverload):
            value = rules.apply(node.target, args, kwargs, node, self.names)
            if value is NotImplemented:
                value = self._decomposed(node, [*_flat(args), *_flat(kwargs)], caller)
            if value is not NotImplemented:
                _tie_written(node, rules.bind(node.target, args, kwargs), value)
                return value
        elif name in _INLINED and isinstance(args[_INLINED[name]], fx.GraphModule):
            place = _INLINED[name]
            return self.run(args[place], args[place + 1 :])
        # Neither a rule nor a decomposition, or no ATen operator at all, such as control flow.
        value, unknown = rules.pin_unknown(node, [*_flat(args), *_flat(kwargs)])
        if unknown is not None:
            self.unknown.append((unknown, caller))
        return value

    def _decomposed(self, node: fx.Node, leaves: Sequence[Any], caller: str) -> Any:
        simpler = decomposed(node)
        if simpler is None:
            return NotImplemented
        graph, places = simpler
        return self.run(graph, [rules.plain(leaves[place], str(node.target)) for place in places], caller)


def _tie_written(node: fx.Node, bound: Mapping[str, Any], value: Any) -> None:
    """What an operator writes to has the order of its result: both names stand for one memory."""
    schema = node.target._schema  # type: ignore[union-attr]
    if not schema.is_mutable or schema.name.removeprefix("aten::") in _RESHAPING | _TIED:
        return
    for argument in schema.arguments:
        written = bound[argument.name]
        if not argument.is_write or not isinstance(written, Traced):
            continue
        if isinstance(value, Traced) and value.shape == written.shape:
            unify_axes(value.axes, written.axes)
        else:
            for tensor in (value, written):
                pin_value(tensor, f"written to by {schema.name}")


def pin_value(value: Any, why: str) -> None:
    """Pin every tensor of a value."""
    for leaf in _flat(value):
        for tensor in leaf.members if isinstance(leaf, Stacked) else [leaf]:
            if isinstance(tensor, Traced):
                pin_all(tensor, why)


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    value = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return fixed(value.shape, "meets a constant of the network") if isinstance(value, Tensor) else value


def _mutated(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose memory some operator writes to, followed back through whatever may be a view of its first operand."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        arguments = rules.bind(node.target, node.args, node.kwargs)
        chain = [arguments[argument.name] for argument in schema.arguments if argument.is_write]
        while chain:
            source = chain.pop()
            if isinstance(source, (list, tuple)):
                chain.extend(source)
            elif isinstance(source, fx.Node) and source not in found:
                found.add(source)
                chain.extend(source.args[:1])
    return found


def _mapped(value: Any, env: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return env[value]
    if isinstance(value, (tuple, list)):
        return [_mapped(item, env) for item in value]
    if isinstance(value, dict):
        return {key: _mapped(item, env) for key, item in value.items()}
    return value


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in _flat(item)]
    if isinstance(value, dict):
        return _flat(list(value.values()))
    return [value]


def _caller(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = (path.removeprefix("network").removeprefix(".") for path, _ in reversed(list(stack.values())))
    return next((path for path in paths if path), "the network")
