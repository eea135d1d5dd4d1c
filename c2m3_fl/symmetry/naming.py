"""Readable names for groups: each after the module that produces its positions.

``layer1.0.conv1`` is what that convolution puts out. A module called by a mere number gets ``.out`` behind it, since a
number in a spec is a fixed axis. Where a module produces several groups, what they are is added (``attn.heads``,
``attn.qk``, ``attn.v``), or a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from c2m3_fl.symmetry import symbols
from c2m3_fl.symmetry.rules import Names
from c2m3_fl.symmetry.symbols import Atom, Extent

_FORBIDDEN = re.compile(r"[\s*+]")
_RECURRENT = re.compile(r"(?:.*\.)?weight_(?:ih|hr)_(l\d+(?:_reverse)?)")


def name_groups(extents: Mapping[str, Sequence[Extent]], names: Names) -> dict[Atom, str]:
    """Name every atom that is free in some axis.

    Parameters
    ----------
    extents
        Axes of each tensor, in the order of the state dict.
    names
        Hints that the rules left.
    """
    wanted = [atom for axes in extents.values() for extent in axes for atom in _free(extent)]
    order = dict.fromkeys(wanted)
    roles: dict[Atom, str] = {}
    for extent, role in names.roles:
        for atom in _free(extent):
            roles.setdefault(atom, role)
    bases: dict[Atom, tuple[str, bool]] = {}
    hints = [*names.produced, *((extent, name) for name, axes in extents.items() for extent in axes)]
    for extent, source in hints:
        atoms = list(dict.fromkeys(_free(extent)))
        for atom in atoms:
            bases.setdefault(atom, (base_name(source), len(atoms) > 1))
    taken: dict[str, Atom] = {}
    for atom in order:
        base, shared = bases[atom]
        wish = f"{base}.{roles[atom]}" if shared and atom in roles else base
        taken[_unused(wish, taken)] = atom
    return {atom: name for name, atom in taken.items()}


def base_name(source: str) -> str:
    """Name for what a parameter produces."""
    module, _, parameter = source.rpartition(".")
    name = module or parameter
    if match := _RECURRENT.fullmatch(source):
        name = f"{module}.{match[1]}" if module else match[1]
    name = _FORBIDDEN.sub("_", name)
    return f"{name}.out" if name.isdecimal() else name


def _free(extent: Extent) -> list[Atom]:
    return [
        atom
        for segment in symbols.written(extent)
        for atom in segment
        if symbols.reason((atom,)) is None and atom.size > 1
    ]


def _unused(wish: str, taken: Mapping[str, Atom]) -> str:
    if wish not in taken:
        return wish
    number = 2
    while f"{wish}.{number}" in taken:
        number += 1
    return f"{wish}.{number}"
