"""A permutation spec in writing, for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from c2m3_fl.symmetry.spec import Axis, PermutationSpec

_SHOWN = 4


def explain(spec: PermutationSpec) -> str:
    """Groups, what they move, what share of the parameters that is, and what stays and why."""
    parts = [_summary(spec), _groups(spec), _still(spec), _pins(spec)]
    return "\n\n".join(part for part in parts if part) + "\n"


def moved_share(spec: PermutationSpec) -> float:
    """Share of the parameters, counted by element, that lie in a tensor that some group moves."""
    moved, total = _counts(spec)
    return moved / total if total else 0.0


def _counts(spec: PermutationSpec) -> tuple[int, int]:
    sizes = {name: _numel(axes) for name, axes in spec.tensors.items() if name not in spec.carried}
    moved = sum(sizes[name] for name in spec.moved_tensors() if name in sizes)
    return moved, sum(sizes.values())


def _numel(axes: Sequence[Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def _summary(spec: PermutationSpec) -> str:
    moved, total = _counts(spec)
    groups = "1 group moves" if len(spec.groups) == 1 else f"{len(spec.groups)} groups move"
    return f"{groups} {moved:,} of {total:,} parameters ({moved_share(spec):.2%})."


def _groups(spec: PermutationSpec) -> str:
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


def _still(spec: PermutationSpec) -> str:
    moved = {*spec.moved_tensors(), *spec.carried}
    still = [f"{name} ({_numel(axes):,})" for name, axes in spec.tensors.items() if name not in moved]
    return f"Parameters that nothing moves: {_some(still, 12)}." if still else ""


def _pins(spec: PermutationSpec) -> str:
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
