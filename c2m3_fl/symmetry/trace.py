"""From a module and example inputs to its permutation groups.

The ATen graph is run on symbols: each axis of each parameter gets one, each operator's rule restricts them, the model's
inputs and outputs are fixed. What is still free at the end is a permutation group.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from c2m3_fl.symmetry import rules, symbols
from c2m3_fl.symmetry.axes import Axis, Factor, Segment, SpecError
from c2m3_fl.symmetry.graph import export
from c2m3_fl.symmetry.groups import NOT_REACHED, PermutationGroups, Pin
from c2m3_fl.symmetry.naming import name_groups
from c2m3_fl.symmetry.rules import Names
from c2m3_fl.symmetry.symbols import Atom, Extent
from c2m3_fl.symmetry.tensors import Stacked, Traced, Value, fixed, pin_all

_INLINED = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4, "tag_activation_checkpoint": 0}
"""Operators that merely call a subgraph, and where among their arguments it is."""


@dataclass
class Trace:
    """Symbols of one module's tensors.

    Attributes
    ----------
    tensors
        For each name in the state dict, its symbols; the names of a tied weight share them.
    names
        Hints for the groups' names.
    unknown
        Operators without a rule that pinned something, each with the module that calls it.
    """

    tensors: dict[str, Traced]
    names: Names = field(default_factory=Names)
    unknown: list[tuple[str, str]] = field(default_factory=list)


def trace(module: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> PermutationGroups:
    """Find the permutation groups of a module.

    Raises
    ------
    SpecError
        If the module cannot be exported, or its state dict holds something other than tensors.
    """
    state = module.state_dict(keep_vars=True)
    if strange := sorted(name for name, value in state.items() if not isinstance(value, Tensor)):
        raise SpecError(f"the module's state dict holds {strange}, which are no tensors; a spec cannot describe them")
    result = Trace(_leaves(state))
    used = _run_program(result, export(module, inputs, kwargs, training=False))
    # Auxiliary classifiers run in training only, yet read channels that would move: they have a say too.
    idle = {name for name, tensor in state.items() if isinstance(tensor, nn.Parameter)} - used
    if idle:
        used |= _run_program(result, export(module, inputs, kwargs, training=True))
    for name, traced in result.tensors.items():
        if name not in used:
            pin_all(traced, NOT_REACHED)
    while not symbols.writable(extent for traced in result.tensors.values() for extent in traced.axes):
        pass
    return _spec(state, result, used)


def _leaves(state: Mapping[str, Tensor]) -> dict[str, Traced]:
    """One symbol for each axis of each tensor; tensors that share memory without being one are fixed."""
    leaves: dict[str, Traced] = {}
    by_identity: dict[int, Traced] = {}
    by_memory: dict[int, Traced] = {}
    for name, tensor in state.items():
        known = by_identity.get(id(tensor))
        if known is None:
            known = Traced(tuple(symbols.free(n) for n in tensor.shape), source=name)
            by_identity[id(tensor)] = known
            memory = tensor.untyped_storage().data_ptr()
            if memory and (other := by_memory.setdefault(memory, known)) is not known:
                for shared in (other, known):
                    pin_all(shared, "shares its memory with another tensor of the state dict")
        leaves[name] = known
    return leaves


def _run_program(result: Trace, program: ExportedProgram) -> set[str]:
    """Run an exported graph on symbols; the names of the tensors that it uses."""
    signature = program.graph_signature
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    values: list[Any] = []
    used: set[int] = set()
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        if spec.target in result.tensors and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            leaf = result.tensors[spec.target]
            if node.users:
                used.add(id(leaf))
            values.append(leaf)
        elif spec.kind is InputKind.USER_INPUT:
            values.append(rules.registry.fixed_like(node.meta.get("val"), "carries the network's input"))
        else:
            values.append(rules.registry.fixed_like(node.meta.get("val"), "meets a constant of the network"))
    outputs = _run_graph(result, program.graph_module, values)
    for value, output in zip(outputs, signature.output_specs, strict=True):
        # A buffer that the network updates keeps its own order; all other results are the network's output.
        if output.kind is OutputKind.BUFFER_MUTATION and output.target in result.tensors:
            _tie(value, result.tensors[output.target])
        else:
            _pin_value(value, "carries the network's output")
    return {name for name, leaf in result.tensors.items() if id(leaf) in used}


def _run_graph(result: Trace, module: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
    env: dict[fx.Node, Any] = {}
    mutated = _mutated(module.graph)
    feed = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value = next(feed)
        elif node.op == "get_attr":
            value = _attribute(module, node)
        elif node.op == "call_function":
            value = _run_node(result, node, env)
        else:
            return list(_mapped(node.args[0], env))
        if isinstance(value, Traced) and value.uniform and node in mutated:
            value = Traced(value.axes)
        env[node] = value
    return []


def _run_node(result: Trace, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = _mapped(node.args, env), _mapped(node.kwargs, env)
    if node.target is operator.getitem:
        return args[0][args[1]]
    if isinstance(node.target, torch._ops.OpOverload):
        value, unknown = rules.apply(node.target, args, kwargs, node, result.names)
    elif (name := getattr(node.target, "__name__", "")) in _INLINED and isinstance(
        args[_INLINED[name]], fx.GraphModule
    ):
        place = _INLINED[name]
        return _run_graph(result, args[place], args[place + 1 :])
    else:
        value, unknown = _opaque(node, args, kwargs)
    if unknown is not None:
        result.unknown.append((unknown, _caller(node)))
    return value


def _opaque(node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, str | None]:
    """Something that is no ATen operator, such as control flow: pin what it touches."""
    name = getattr(node.target, "__name__", str(node.target))
    tensors = [value for value in _flat((args, kwargs)) if isinstance(value, (Traced, Stacked))]
    for value in tensors:
        _pin_value(value, f"used by {name}, for which there is no rule")
    return rules.registry.fixed_like(node.meta.get("val"), f"made by {name}"), name if tensors else None


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
        chain = [
            node.args[i] for i, argument in enumerate(schema.arguments) if argument.is_write and i < len(node.args)
        ]
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


def _pin_value(value: Any, why: str) -> None:
    if isinstance(value, Stacked):
        for member in value.members:
            pin_all(member, why)
    elif isinstance(value, Traced):
        pin_all(value, why)


def _tie(value: Value, leaf: Traced) -> None:
    if isinstance(value, Traced) and value.shape == leaf.shape:
        for a, b in zip(value.axes, leaf.axes, strict=True):
            symbols.unify(a, b)
    else:
        _pin_value(value, "updates a buffer")
        pin_all(leaf, "updates a buffer")


def _caller(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(list(stack.values())) if path), "the network")


def _spec(state: Mapping[str, Tensor], result: Trace, used: set[str]) -> PermutationGroups:
    extents = {name: [symbols.written(extent) for extent in leaf.axes] for name, leaf in result.tensors.items()}
    groups = name_groups(extents, result.names)
    tensors = {name: tuple(_axis(extent, groups) for extent in axes) for name, axes in extents.items()}
    first: dict[int, str] = {}
    tied = {name: known for name, tensor in state.items() if (known := first.setdefault(id(tensor), name)) != name}
    parameters = [name for name, tensor in state.items() if isinstance(tensor, nn.Parameter) and name not in tied]
    pins = [Pin(name, NOT_REACHED) for name in parameters if name not in used]
    pins += [pin for name in parameters if name in used for pin in _pins(name, extents[name])]
    pins += [Pin(caller, f"calls {name}, for which there is no rule") for name, caller in dict.fromkeys(result.unknown)]
    sizes = {name: atom.size for atom, name in groups.items()}
    return PermutationGroups(sizes, tensors, frozenset(state) - frozenset(parameters), tuple(pins), tied)


def _axis(extent: Extent, groups: Mapping[Atom, str]) -> Axis:
    """An axis of the spec, with runs of fixed positions merged into one number."""
    segments: list[Segment] = []
    for segment in extent:
        factors: list[Factor] = []
        for atom in segment:
            factor = Factor(atom.size, groups.get(atom))
            if factor.group is None and factors and factors[-1].group is None:
                factor = Factor(factors.pop().size * factor.size)
            factors.append(factor)
        made = Segment(tuple(factors) or (Factor(1),))
        if segments and _is_fixed(made) and _is_fixed(segments[-1]):
            made = Segment((Factor(segments.pop().size + made.size),))
        segments.append(made)
    return Axis(tuple(segments))


def _is_fixed(segment: Segment) -> bool:
    return all(factor.group is None for factor in segment.factors)


def _pins(name: str, axes: Sequence[Extent]) -> list[Pin]:
    pins: dict[str, str] = {}
    for dim, extent in enumerate(axes):
        for segment in extent:
            why = symbols.reason(segment)
            if why and symbols.segment_size(segment) > 1:
                part = "" if len(extent) == 1 else " (in part)"
                pins.setdefault(f"{name}[{dim}]{part}", why)
    return [Pin(what, why) for what, why in pins.items()]
