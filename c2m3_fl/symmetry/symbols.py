"""Symbols for the axes of traced tensors: unification with refinement.

An *atom* is a set of positions that some permutation might reorder. An *extent* describes one axis: a concatenation of
segments, each a product of atoms, the last one varying fastest. Tracing starts with one atom for each axis of each
parameter and then only ever restricts:

- *union*: two atoms must be reordered alike;
- *refinement*: an atom turns out to be a product or a concatenation of smaller atoms, because an operator looks inside;
- *pin*: an atom must stay as it is.

Each step shrinks the set of permutations the symbols stand for. Doing one too many loses symmetry, never correctness;
so wherever two extents do not fit together in a way that can be written down, the atoms involved are pinned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Segment = tuple["Atom", ...]
Extent = tuple[Segment, ...]

UNIT: Extent = ((),)
"""The extent of an axis of size one."""

_MOST_COPIES = 64
"""How often a concatenation behind a fixed factor is written out before its parts are pinned instead."""


class Atom:
    """A set of `size` positions; compare by identity after `find`."""

    __slots__ = ("parent", "parts", "reason", "size")

    def __init__(self, size: int, reason: str | None = None) -> None:
        self.size = size
        self.parent: Atom | None = None
        self.parts: Extent | None = None
        self.reason = reason

    def find(self) -> Atom:
        """The representative of all atoms united with this one."""
        atom = self
        while atom.parent is not None:
            if atom.parent.parent is not None:
                atom.parent = atom.parent.parent
            atom = atom.parent
        return atom


def free(size: int) -> Extent:
    """An axis that any permutation may reorder, so far."""
    return ((Atom(size),),) if size != 1 else UNIT


def pinned(size: int, reason: str) -> Extent:
    """An axis that stays as it is."""
    return ((Atom(size, reason),),) if size != 1 else UNIT


def segment_size(segment: Segment) -> int:
    """Number of positions of a segment."""
    return math.prod(atom.size for atom in segment)


def size(extent: Extent) -> int:
    """Number of positions of an axis."""
    return sum(map(segment_size, extent))


def reason(segment: Segment) -> str | None:
    """Why a segment is pinned as a whole, or None where one of its atoms is free."""
    found: str | None = ""
    for atom in expand((segment,)):
        for factor in atom:
            if _free_leaf(factor):
                return None
            found = found or _first_reason(factor)
    return found


def expand(extent: Extent) -> Extent:
    """Write an extent in its present atoms.

    A concatenation inside a product is written out where it is the product's first factor; elsewhere it stays one atom
    whose `parts` tell of it.
    """
    segments: list[Segment] = []
    for segment in extent:
        atoms = [leaf for atom in segment for leaf in _factors(atom)]
        if atoms and (parts := atoms[0].parts) is not None:
            segments.extend(expand(tuple((*part, *atoms[1:]) for part in parts)))
        else:
            segments.append(tuple(atoms))
    return tuple(segments)


def pin(extent: Extent, why: str) -> None:
    """Pin every atom of an extent."""
    for segment in expand(extent):
        for atom in segment:
            _pin_atom(atom, why)


def unify(left: Extent, right: Extent) -> None:
    """Demand that two axes of one size are reordered alike."""
    if size(left) != size(right):
        raise ValueError(f"axes of sizes {size(left)} and {size(right)} cannot be unified")
    rest, other = expand(left), expand(right)
    while rest and other:
        a, b = rest[0], other[0]
        if a == b or segment_size(a) == segment_size(b):
            if a != b:
                _unify_products(a, b)
            rest, other = rest[1:], other[1:]
        elif segment_size(a) > segment_size(b):
            rest = (*_cut(a, segment_size(b)), *rest[1:])
        else:
            other = (*_cut(b, segment_size(a)), *other[1:])
        rest, other = expand(rest), expand(other)


def positions(extent: Extent, start: int, stop: int) -> Extent:
    """The axis that holds positions `start` to `stop` of another."""
    taken: list[Segment] = []
    offset = 0
    queue = list(expand(extent))
    while queue and offset < stop:
        segment = queue.pop(0)
        end = offset + segment_size(segment)
        if end <= start:
            offset = end
        elif offset >= start and end <= stop:
            taken.append(segment)
            offset = end
        else:
            queue[:0] = _cut(segment, (start if offset < start else stop) - offset)
            queue = list(expand(tuple(queue)))
    return tuple(taken) or ((Atom(0, "empty"),),)


def product(extents: Sequence[Extent]) -> Extent:
    """The axis that flattening several axes makes, the last one varying fastest."""
    result = UNIT
    for extent in extents:
        expanded = expand(extent)
        if expanded == UNIT:
            continue
        if result == UNIT:
            result = expanded
            continue
        tail = expanded[0] if len(expanded) == 1 else (_concatenation(expanded),)
        result = tuple((*segment, *tail) for segment in result)
    return result


def split_trailing(extent: Extent, n: int) -> tuple[Extent, Extent]:
    """See an axis as the product of a leading axis and a trailing one of size `n`, which must divide its size."""
    total = size(extent)
    if n == total:
        return UNIT, extent
    if n == 1:
        return extent, UNIT
    expanded = expand(extent)
    if not any(_moves(segment) for segment in expanded):
        why = reason(expanded[0]) or "fixed"
        return pinned(total // n, why), pinned(n, why)
    if all(segment_size(segment) % n == 0 for segment in expanded):
        pieces = [_split_segment(segment, n) for segment in expanded]
        if all(piece is not None for piece in pieces):
            leads, trails = zip(*(piece for piece in pieces if piece is not None), strict=True)
            for trail in trails[1:]:
                unify((trails[0],), (trail,))
            return tuple(leads), (trails[0],)
    rows = [positions(extent, start, start + n) for start in range(0, total, n)]
    for row in rows[1:]:
        unify(rows[0], row)
    return pinned(total // n, "rows of an axis that the network folds up"), rows[0]


def writable(extents: Iterable[Extent]) -> bool:
    """Restrict atoms until each axis is a concatenation of products; whether nothing was left to do.

    A concatenation behind a fixed factor can be written out; behind one that moves it cannot, and its parts are pinned.
    """
    done = True
    for extent in extents:
        for segment in expand(extent):
            copies = 1
            for position, atom in enumerate(segment):
                if atom.parts is not None and (_moves(segment[:position]) or copies > _MOST_COPIES):
                    _pin_atom(atom, "concatenated parts inside a product of groups have no way to be written")
                    done = False
                copies *= atom.size
    return done


def written(extent: Extent) -> Extent:
    """An extent, after `writable`, without any concatenation inside a product."""
    segments: list[Segment] = []
    for segment in expand(extent):
        inner = next((i for i, atom in enumerate(segment) if atom.parts is not None), None)
        if inner is None:
            segments.append(segment)
            continue
        parts = segment[inner].parts
        assert parts is not None
        row = written(tuple((*part, *segment[inner + 1 :]) for part in parts))
        segments.extend(row * segment_size(segment[:inner]))
    return tuple(segments)


def _factors(atom: Atom) -> list[Atom]:
    atom = atom.find()
    if atom.size == 1:
        return []
    if atom.parts is None:
        return [atom]
    if not _free_leaf(atom):
        atom.reason, atom.parts = _first_reason(atom), None
        return [atom]
    if len(atom.parts) == 1:
        return [leaf for part in atom.parts[0] for leaf in _factors(part)]
    return [atom]


def _free_leaf(atom: Atom) -> bool:
    atom = atom.find()
    if atom.parts is None:
        return atom.reason is None and atom.size != 1
    return any(_free_leaf(leaf) for segment in atom.parts for leaf in segment)


def _first_reason(atom: Atom) -> str:
    atom = atom.find()
    if atom.parts is None:
        return atom.reason or ""
    return next((r for segment in atom.parts for leaf in segment if (r := _first_reason(leaf))), "a single position")


def _moves(segment: Segment) -> bool:
    return any(_free_leaf(atom) for atom in segment)


def _pin_atom(atom: Atom, why: str) -> None:
    atom = atom.find()
    if atom.parts is not None:
        pin(atom.parts, why)
        atom.parts = None
    if atom.reason is None:
        atom.reason = why


def _union(a: Atom, b: Atom) -> None:
    a, b = a.find(), b.find()
    if a is b:
        return
    if a.reason is not None or b.reason is not None:
        why = a.reason if a.reason is not None else b.reason
        assert why is not None
        _pin_atom(a, why)
        _pin_atom(b, why)
    elif a.parts is not None and b.parts is not None:
        unify(a.parts, b.parts)
    elif a.parts is not None:
        a, b = b, a
    # The parts may have been united with each other in the meantime; atoms only ever gain a parent here.
    if a is not b:
        a.parent, a.parts = b, None


def _concatenation(extent: Extent) -> Atom:
    atom = Atom(size(extent))
    atom.parts = extent
    return atom


def _factor(atom: Atom, n: int) -> tuple[Atom, Atom]:
    """Refine an atom into a product whose last factor has size `n`."""
    atom = atom.find()
    if atom.reason is not None:
        return Atom(atom.size // n, atom.reason), Atom(n, atom.reason)
    if atom.parts is not None:
        lead, trail = split_trailing(atom.parts, n)
        leading, trailing = _concatenation(lead), _concatenation(trail)
    else:
        leading, trailing = Atom(atom.size // n), Atom(n)
    atom.parts = ((leading, trailing),)
    return leading, trailing


def _unify_products(a: Segment, b: Segment) -> None:
    """Unify two segments of one size, from the fastest factor to the slowest."""
    rest, other = [a], [b]
    while True:
        # Refining one side may refine atoms of the other, so both are written out anew at every step.
        s, t = _flat(rest[0]), _flat(other[0])
        if not s or not t:
            return
        x, y = s[-1], t[-1]
        if x.size == y.size:
            _union(x, y)
            rest[0], other[0] = s[:-1], t[:-1]
            continue
        big, small = (x, y) if x.size > y.size else (y, x)
        if big.size % small.size:
            for segment in (s, t):
                pin((segment,), "two groupings of one axis whose factors do not divide each other")
            return
        lead, trail = _factor(big, small.size)
        _union(trail, small)
        rest[0], other[0] = ((*s[:-1], lead), t[:-1]) if big is x else (s[:-1], (*t[:-1], lead))


def _flat(segment: Segment) -> Segment:
    return tuple(leaf for atom in segment for leaf in _factors(atom))


def _cut(segment: Segment, n: int) -> tuple[Segment, ...]:
    """Split a segment into its first `n` positions and the rest, refining its first atom."""
    lead, rest = segment[0], segment[1:]
    row = segment_size(rest)
    before, inside = divmod(n, row)
    sizes = [before, 1, lead.size - before - 1] if inside else [before, lead.size - before]
    atoms = [Atom(s, lead.reason) if s else None for s in sizes]
    if lead.reason is None:
        lead.parts = tuple((atom,) for atom in atoms if atom is not None)
    pieces: list[Segment] = []
    for position, atom in enumerate(atoms):
        if inside and position == 1:
            pieces.extend(_cut_row(rest, inside))
        elif atom is not None:
            pieces.append((atom, *rest))
    return tuple(pieces)


def _cut_row(rest: Segment, n: int) -> Extent:
    row = expand((rest,))
    return (*positions(row, 0, n), *positions(row, n, size(row)))


def _split_segment(segment: Segment, n: int) -> tuple[Segment, Segment] | None:
    """Split a segment into leading factors and trailing ones of size `n`, or None where no factor divides so."""
    lead, trail = list(segment), list[Atom]()
    need = n
    while need > 1:
        atom = lead.pop()
        if need % atom.size == 0:
            trail.insert(0, atom)
            need //= atom.size
        elif atom.size % need == 0:
            leading, trailing = _factor(atom, need)
            lead.append(leading)
            trail.insert(0, trailing)
            need = 1
        else:
            return None
    return tuple(lead), tuple(trail)
