"""What makes a client's state dict or weight unusable, and a canonical order of clients."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

MAX_RATIO = 1e3
"""How much smaller than the others' a client's network may be."""

MAX_GROWTH = 5.0
"""How much larger than the others' a client's network may be. Of those seen to diverge on MNIST the first had 9 times the
usual norm and a loss of 543; clients that learn differ by less than half."""


class ClientError(ValueError):
    """State dicts or weights of clients that cannot be merged."""


def defect(state_dict: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> str | None:
    """Say why a client's tensors cannot be merged with others like `reference`, or None if they can."""
    if missing := [name for name in reference if name not in state_dict]:
        return f"tensor {missing[0]!r} is missing" + _and_more(missing)
    if unknown := [name for name in state_dict if name not in reference]:
        return f"tensor {unknown[0]!r} is not in the model" + _and_more(unknown)
    for name, expected in reference.items():
        tensor = state_dict[name]
        if tensor.shape != expected.shape:
            return f"tensor {name!r} has shape {tuple(tensor.shape)}, not {tuple(expected.shape)}"
        if tensor.dtype != expected.dtype:
            return f"tensor {name!r} is of {tensor.dtype}, not {expected.dtype}"
        if not bool(torch.isfinite(tensor).all()):
            return f"tensor {name!r} has entries that are NaN or infinite"
    return None


def check_clients(state_dicts: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None) -> tuple[float, ...]:
    """Check that clients can be merged, and return their weights.

    Parameters
    ----------
    state_dicts
        The clients' tensors.
    weights
        One non-negative, finite weight per client, not all zero; None for equal weights.

    Raises
    ------
    ClientError
        Naming the first client, by position, that cannot be merged with the first one, or whose weight is unusable.
    """
    if not state_dicts:
        raise ClientError("there are no clients to merge")
    first = state_dicts[0]
    for position, state_dict in enumerate(state_dicts):
        if reason := defect(state_dict, first):
            raise ClientError(f"client {position} cannot be merged: {reason}")
    if weights is None:
        return (1.0,) * len(state_dicts)
    if len(weights) != len(state_dicts):
        raise ClientError(f"{len(weights)} weights were given for {len(state_dicts)} clients")
    checked = tuple(float(weight) for weight in weights)
    for position, weight in enumerate(checked):
        if not math.isfinite(weight) or weight < 0:
            raise ClientError(f"client {position} has weight {weight}; weights are finite and not negative")
    if not sum(checked) > 0:
        raise ClientError("all clients have weight zero; at least one must count")
    return checked


def implausible(
    state_dicts: Sequence[Mapping[str, Tensor]], broadcast: Mapping[str, Tensor] | None = None
) -> list[str | None]:
    """Say of each client why its network cannot be one that was trained, or None.

    A client whose tensors are `MAX_GROWTH` times larger, by Euclidean norm, than the median client's, because its training
    diverged, would decide the average alone or overflow it; one with tensors `MAX_RATIO` times smaller sent no network.
    Floating-point tensors count, all together.

    Parameters
    ----------
    state_dicts
        The clients' tensors: equal names, finite.
    broadcast
        The network that the clients set out from, as one more opinion.
    """
    norms = [_norm(state_dict) for state_dict in state_dicts]
    opinions = norms if broadcast is None else [*norms, _norm(broadcast)]
    usual = statistics.median_low(opinions) if opinions else 0.0
    reasons: list[str | None] = []
    for norm in norms:
        if norm > MAX_GROWTH * usual:
            reasons.append(
                f"its norm is {norm:.3g}, more than {MAX_GROWTH:g} times the usual {usual:.3g}: diverged, or malicious"
            )
        elif norm * MAX_RATIO < usual:
            reasons.append(f"its norm is {norm:.3g}, less than a {MAX_RATIO:g}th of the usual {usual:.3g}")
        else:
            reasons.append(None)
    return reasons


def _norm(state_dict: Mapping[str, Tensor]) -> float:
    squares = (float(t.detach().double().square().sum()) for t in state_dict.values() if t.is_floating_point())
    return math.sqrt(sum(squares))


def canonical_order(state_dicts: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> list[int]:
    """Positions of the clients in an order that depends on their content alone.

    Sums of floating-point numbers and the moves of a matcher depend on the clients' order. Sorted by a digest of what
    they sent, the same clients give the same bits whatever the order in which they came.
    """
    keys = [(_digest(state_dict), weight) for state_dict, weight in zip(state_dicts, weights, strict=True)]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _digest(state_dict: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
