"""Random rounds over faults and options: the next model is finite and no worse, and whoever is left out is counted.

``python -m tests.federation.fuzz ROUNDS [SEED]`` plays so many, and ends with an error at the first that breaks the rule.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from flwr.app import Message

from c2m3_fl import average
from tests.federation.faults import FAULTS, HONEST, StateDict, honest_replies, identify, noise, reply, scene, strategy

OPTIONS: dict[str, Sequence[Any]] = {
    "robust": (None, "exclude", "median", "trimmed-mean"),
    "repair": ("auto", None, "repair", "repair-pooled", "repair-bounded"),
    "guard": (True, False),
    "matcher": ("default", "identity", "coordinate-ascent"),
    "group_size": (None, 3),
    "server_momentum": (0.0, 0.5),
}


@lru_cache(maxsize=1)
def plain() -> float:
    """Accuracy of the honest clients' plain average."""
    return scene().accuracy(average(scene().honest))


def bent(draw: random.Random) -> Message:
    """The faulty client's network with one tensor made larger or moved, by anything from nothing to everything."""
    own: StateDict = dict(scene().own)
    name = draw.choice(sorted(own))
    size = 10.0 ** draw.uniform(2.5, 38)
    own[name] = own[name] * size if draw.random() < 0.5 else own[name] + draw.choice((-1, 1)) * size
    return reply(draw.randrange(200, 10**6), own, 10.0 ** draw.uniform(-300, 300))


def play(draw: random.Random) -> str | None:
    """One round; what is wrong with it, or None."""
    options = {name: draw.choice(choices) for name, choices in OPTIONS.items()}
    names = [name for name, fault in FAULTS.items() if not fault.robust]
    chosen = [draw.choice(names) for _ in range(draw.randint(0, 2))]
    received = [*honest_replies(), *(message for name in dict.fromkeys(chosen) for message in FAULTS[name].replies())]
    if draw.random() < 0.5:
        received.append(bent(draw))
    draw.shuffle(received)
    arrays, metrics = strategy(**options).aggregate_train(1, received)
    told = f"{options}, {chosen}"
    if arrays is None or metrics is None:
        return f"{told}: the round is lost"
    merged = dict(arrays.to_torch_state_dict())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in merged.values()):
        return f"{told}: the model is not finite"
    if metrics["c2m3-clients"] + metrics["c2m3-left-out"] != len(received) or metrics["c2m3-clients"] < HONEST:  # type: ignore[operator]
        return f"{told}: {metrics['c2m3-clients']} of {len(received)} replies are merged"
    if (accuracy := scene().accuracy(merged)) < plain() - 2 * noise():
        return f"{told}: accuracy {accuracy:.3f}, the plain average's is {plain():.3f}"
    return None


def main(arguments: Sequence[str]) -> None:
    """Run from the command line."""
    identify()
    draw = random.Random(int(arguments[1]) if len(arguments) > 1 else 0)
    rounds = int(arguments[0])
    faults = [fault for _ in range(rounds) if (fault := play(draw)) is not None]
    print(f"{rounds} rounds, {len(faults)} break the rule")
    sys.exit("\n".join(faults[:20]) if faults else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
