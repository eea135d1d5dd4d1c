"""A permutation spec in writing, for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from c2m3_fl.symmetry.axes import Axis
from c2m3_fl.symmetry.groups import NOT_REACHED, PermutationGroups

_SHOWN = 4
_ENOUGH = 0.5


def explain(spec: PermutationGroups) -> str:
    """Groups, what they move, what share of the parameters that is, and what stays and why."""
    parts = [_summary(spec), _groups(spec), _still(spec), _pins(spec)]
    return "\n\n".join(part for part in parts if part) + "\n"


def moved_share(spec: PermutationGroups) -> float:
    """Share of the parameters, counted by element, that lie in a tensor that some group moves."""
    moved, total = _counts(spec)
    return moved / total if total else 0.0


def shortcomings(spec: PermutationGroups) -> list[str]:
    """What a user should know before averaging by this spec, in whole sentences.

    Returns
    -------
    list of str
        Empty where some group moves, `forward` reaches every parameter and at least half of the parameters move.
    """
    moved, total = _counts(spec)
    sentences: list[str] = []
    idle = [pin.tensor for pin in spec.pins if pin.reason == NOT_REACHED and pin.tensor in spec.tensors]
    if idle:
        share = sum(_numel(spec.tensors[name]) for name in idle) / max(total, 1)
        sentences.append(
            f"`forward` does not reach {share:.1%} of the parameters ({_some(idle)}): they are averaged without any "
            "alignment. Trace a module whose forward pass uses all that is trained."
        )
    if not spec.groups:
        sentences.append(f"No permutation group was found: nothing can be aligned.{_because(spec)}")
    elif moved < _ENOUGH * total:
        sentences.append(f"The groups move {moved / total:.1%} of the parameters; the rest stays.{_because(spec)}")
    return sentences


def _because(spec: PermutationGroups, most: int = 3) -> str:
    """The reasons for groups and calls that are named, then those behind the largest tensors that stay."""
    moved = {*spec.moved_tensors(), *spec.carried}
    weights: dict[str, float] = {}
    examples: dict[str, str] = {}
    for pin in spec.pins:
        if pin.tensor in moved or pin.reason == NOT_REACHED:
            continue
        size = _numel(spec.tensors[pin.tensor]) if pin.tensor in spec.tensors else math.inf
        weights[pin.reason] = weights.get(pin.reason, 0) + size
        examples.setdefault(pin.reason, pin.what)
    first = sorted(weights, key=lambda reason: -weights[reason])[:most]
    reasons = "; ".join(f"{examples[reason]} ({reason})" for reason in first)
    return f" First reasons: {reasons}." if reasons else ""


def _counts(spec: PermutationGroups) -> tuple[int, int]:
    sizes = {name: _numel(axes) for name, axes in spec.tensors.items() if name not in spec.carried}
    moved = sum(sizes[name] for name in spec.moved_tensors() if name in sizes)
    return moved, sum(sizes.values())


def _numel(axes: Sequence[Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def _summary(spec: PermutationGroups) -> str:
    moved, total = _counts(spec)
    groups = "1 group moves" if len(spec.groups) == 1 else f"{len(spec.groups)} groups move"
    return f"{groups} {moved:,} of {total:,} parameters ({moved_share(spec):.2%})."


def _groups(spec: PermutationGroups) -> str:
    if not spec.groups:
        return ""
    rows = [("group", "size", "axes", "moves")]
    for group, size in spec.groups.items():
        axes = [
            f"{name}[{dim}]"
            for name, axes in spec.tensors.items()
            for dim, axis in enumerate(axes)
            if group in axis.groups
        ]
        rows.append((group, str(size), str(len(axes)), _some(axes)))
    return _table(rows)


def _still(spec: PermutationGroups) -> str:
    moved = {*spec.moved_tensors(), *spec.carried}
    still = [f"{name} ({_numel(axes):,})" for name, axes in spec.tensors.items() if name not in moved]
    return f"Parameters that nothing moves: {_some(still, 12)}." if still else ""


def _pins(spec: PermutationGroups) -> str:
    if not spec.pins:
        return ""
    by_reason: dict[str, list[str]] = {}
    for pin in spec.pins:
        by_reason.setdefault(pin.reason, []).append(pin.what)
    rows = [("stays because it", "axes", "what")]
    rows += [(reason, str(len(what)), _some(what)) for reason, what in by_reason.items()]
    return _table(rows)


def _some(names: Sequence[str], most: int = _SHOWN) -> str:
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")


def _table(rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns under their heads; columns of numbers to the right."""
    head, *body = rows
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    numeric = [all(row[column].isdecimal() for row in body) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, body)])
