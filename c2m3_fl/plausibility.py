"""What makes a client's network one that nobody can have trained."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from c2m3_fl.round import StateDict

MAX_RATIO = 1e3
"""How much smaller than the others' a client's network may be."""

MAX_GROWTH = 5.0
"""How much larger than the others' a client's network may be. Of those seen to diverge on MNIST the first had 9 times the
usual norm and a loss of 543; clients that learn differ by less than half."""


def implausible(state_dicts: Sequence[StateDict], broadcast: StateDict | None = None) -> list[str | None]:
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


def _norm(state_dict: StateDict) -> float:
    squares = (float(t.detach().double().square().sum()) for t in state_dict.values() if t.is_floating_point())
    return math.sqrt(sum(squares))
