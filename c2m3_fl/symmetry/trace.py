"""From a module and example inputs to its permutation groups.

The ATen graph is run on symbols: each axis of each parameter gets one, each operator's rule restricts them, the model's
inputs and outputs are fixed. What is still free at the end is a permutation group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.parameter import is_lazy

from c2m3_fl.symmetry import rules, symbols
from c2m3_fl.symmetry.axes import Axis, Factor, Segment, SpecError
from c2m3_fl.symmetry.graph import export, plain_target
from c2m3_fl.symmetry.groups import NOT_REACHED, PermutationGroups, Pin
from c2m3_fl.symmetry.interpret import Interpreter, pin_value
from c2m3_fl.symmetry.naming import name_groups
from c2m3_fl.symmetry.symbols import Atom, Extent
from c2m3_fl.symmetry.tensors import Traced, Value, pin_all


@dataclass
class Trace:
    """Symbols of one module's tensors.

    Attributes
    ----------
    tensors
        For each name in the state dict, its symbols; the names of a tied weight share them.
    interpreter
        What runs the graphs, with what it found.
    """

    tensors: dict[str, Traced]
    interpreter: Interpreter = field(default_factory=Interpreter)


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
    if lazy := [name for name, value in state.items() if is_lazy(value)]:
        raise SpecError(f"the module's tensors {lazy} have no shape yet: run it once on an example before it is traced")
    result = Trace(_leaves(state))
    used = _run_program(result, export(module, inputs, kwargs, training=False))
    # Auxiliary classifiers run in training only, yet read channels that would move: they have a say too.
    idle = {name for name, tensor in state.items() if isinstance(tensor, nn.Parameter)} - used
    if idle:
        with contextlib.suppress(SpecError):  # parameters that only a pass reaches which cannot be recorded stay
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
        leaf = result.tensors.get(plain_target(spec.target))
        if leaf is not None and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            if node.users:
                used.add(id(leaf))
            values.append(leaf)
        elif spec.kind is InputKind.USER_INPUT:
            values.append(rules.fixed_like(node.meta.get("val"), "carries the network's input"))
        else:
            values.append(rules.fixed_like(node.meta.get("val"), "meets a constant of the network"))
    outputs = result.interpreter.run(program.graph_module, values)
    for value, output in zip(outputs, signature.output_specs, strict=True):
        # A buffer that the network updates keeps its own order; all other results are the network's output.
        leaf = result.tensors.get(plain_target(output.target))
        if output.kind is OutputKind.BUFFER_MUTATION and leaf is not None:
            _tie(value, leaf)
        else:
            pin_value(value, "carries the network's output")
    return {name for name, leaf in result.tensors.items() if id(leaf) in used}


def _tie(value: Value, leaf: Traced) -> None:
    if isinstance(value, Traced) and value.shape == leaf.shape:
        for a, b in zip(value.axes, leaf.axes, strict=True):
            symbols.unify(a, b)
    else:
        pin_value(value, "updates a buffer")
        pin_all(leaf, "updates a buffer")


def _spec(state: Mapping[str, Tensor], result: Trace, used: set[str]) -> PermutationGroups:
    extents = {name: [symbols.written(extent) for extent in leaf.axes] for name, leaf in result.tensors.items()}
    groups = name_groups(extents, result.interpreter.names)
    tensors = {name: tuple(_axis(extent, groups) for extent in axes) for name, axes in extents.items()}
    first: dict[int, str] = {}
    tied = {name: known for name, tensor in state.items() if (known := first.setdefault(id(tensor), name)) != name}
    parameters = [name for name, tensor in state.items() if isinstance(tensor, nn.Parameter) and name not in tied]
    pins = [Pin(name, NOT_REACHED) for name in parameters if name not in used]
    pins += [pin for name in parameters if name in used for pin in _pins(name, extents[name])]
    unknown = dict.fromkeys(result.interpreter.unknown)
    pins += [Pin(caller, f"calls {name}, for which there is no rule") for name, caller in unknown]
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
