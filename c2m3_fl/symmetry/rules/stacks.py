"""Views of a stacked tensor that keep its members apart."""

from __future__ import annotations

from c2m3_fl.symmetry.rules.registry import Call, stacked_rule
from c2m3_fl.symmetry.rules.shapes import order_of, without
from c2m3_fl.symmetry.symbols import UNIT
from c2m3_fl.symmetry.tensors import Stacked, Traced, Value


@stacked_rule("select")
def select_stacked(call: Call, stacked: Stacked) -> Value:
    """One member, or the same position of all."""
    dim = call["dim"] % stacked.ndim
    if dim != stacked.dim or not isinstance(call["index"], int):
        return NotImplemented  # type: ignore[no-any-return]
    return stacked.members[call["index"]]


@stacked_rule("unbind")
def unbind_stacked(call: Call, stacked: Stacked) -> list[Traced]:
    """All members."""
    if call["dim"] % stacked.ndim != stacked.dim:
        return NotImplemented  # type: ignore[no-any-return]
    return list(stacked.members)


@stacked_rule("permute", "transpose", "movedim", "swapaxes", "swapdims")
def transpose_stacked(call: Call, stacked: Stacked) -> Stacked:
    """The fixed axis moves along with the others."""
    order = order_of(call, stacked.ndim)
    if order is None:
        return NotImplemented  # type: ignore[no-any-return]
    inner = [d - (d > stacked.dim) for d in order if d != stacked.dim]
    members = tuple(m.with_axes(m.axes[d] for d in inner) for m in stacked.members)
    return Stacked(order.index(stacked.dim), members)


@stacked_rule("unsqueeze")
def unsqueeze_stacked(call: Call, stacked: Stacked) -> Stacked:
    """A new axis of size one in every member."""
    dim = call["dim"] % (stacked.ndim + 1)
    place = dim - (dim > stacked.dim)
    members = tuple(m.with_axes((*m.axes[:place], UNIT, *m.axes[place:])) for m in stacked.members)
    return Stacked(stacked.dim + (dim <= stacked.dim), members)


@stacked_rule("squeeze")
def squeeze_stacked(call: Call, stacked: Stacked) -> Stacked:
    """An axis of size one goes in every member."""
    given = call.args.get("dim")
    if not isinstance(given, int) or given % stacked.ndim == stacked.dim:
        return NotImplemented  # type: ignore[no-any-return]
    dim = given % stacked.ndim
    place = dim - (dim > stacked.dim)
    if stacked.members[0].shape[place] != 1:
        return stacked
    members = tuple(m.with_axes(without(m.axes, place)) for m in stacked.members)
    return Stacked(stacked.dim - (dim < stacked.dim), members)


@stacked_rule("contiguous", "clone", "detach", "alias", "to", "dropout", "type_as", "_to_copy")
def keep_stacked(call: Call, stacked: Stacked) -> Stacked:
    """Nothing moves."""
    return stacked
