"""An operator without a rule, written in simpler ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten


@lru_cache(maxsize=1)
def _table() -> Mapping[Any, Any]:
    table: Mapping[Any, Any] = torch.export.default_decompositions()
    return table


def decomposed(node: fx.Node) -> tuple[fx.GraphModule, list[int]] | None:
    """The graph of an operator's own decomposition for the arguments that it gets here.

    Returns
    -------
    tuple or None
        The graph, and which of the flattened arguments are its inputs; None where torch knows nothing simpler.
    """
    try:
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
        leaves, structure = tree_flatten(arguments)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def call(*tensors: Tensor) -> Any:
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            args, kwargs = tree_unflatten(filled, structure)
            return node.target(*args, **kwargs)  # type: ignore[operator]

        table: dict[Any, Any] = {node.target: _table()[node.target]} if node.target in _table() else {}
        tensors = [leaves[place] for place in places]
        mode = detect_fake_mode(tensors)
        if mode is None:
            return None
        with mode:
            graph = make_fx(call, decomposition_table=table)(*tensors)
    except Exception:  # no decomposition, or sizes that depend on data: the operator stays one that nobody knows
        return None
    simpler = all(inner.target != node.target for inner in graph.graph.nodes)
    return (graph, places) if simpler else None
