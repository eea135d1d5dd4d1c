"""Looking ahead in the graph, to see whether an axis that a view makes is later taken apart by position.

A packed projection of size 3E seen as (3, E) is a stack of q, k and v if the axis of size 3 is indexed later, and a
product of two groups if it is not. Only what follows can tell.
"""

from __future__ import annotations

from torch.fx import Node

from c2m3_fl.symmetry.rules.registry import bind
from c2m3_fl.symmetry.tensors import fake_shape

_SAME = {"aten::contiguous", "aten::clone", "aten::detach", "aten::alias", "aten::to"}


def taken_apart(node: Node, dim: int) -> bool:
    """Whether some user of the node selects or unbinds along an axis, be it after transpositions."""
    return any(_by(user, node, dim) for user in node.users)


def _by(user: Node, node: Node, dim: int) -> bool:
    schema = getattr(user.target, "_schema", None)
    shape = fake_shape(node.meta.get("val"))
    if schema is None or shape is None:
        return False
    args, ndim = bind(user.target, user.args, user.kwargs), len(shape)
    if args.get("self") is not node:
        return False
    if schema.name in ("aten::select", "aten::unbind"):
        return bool(args["dim"] % ndim == dim)
    moved = _moved(schema.name, args, dim, shape)
    return moved is not None and taken_apart(user, moved)


def _moved(name: str, args: dict[str, object], dim: int, shape: tuple[int, ...]) -> int | None:
    """Where an axis is after a view, or None after anything else."""
    ndim = len(shape)
    if name in _SAME:
        return dim
    if name == "aten::permute":
        order = args["dims"]
        assert isinstance(order, (list, tuple))
        return [d % ndim for d in order].index(dim)
    if name == "aten::transpose":
        a, b = (_int(args[key]) % ndim for key in ("dim0", "dim1"))
        return {a: b, b: a}.get(dim, dim)
    if name == "aten::unsqueeze":
        place = _int(args["dim"]) % (ndim + 1)
        return dim + (place <= dim)
    if name == "aten::squeeze" and isinstance(args.get("dim"), int):
        place = _int(args["dim"]) % ndim
        return dim - (place < dim and shape[place] == 1)
    return None


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
