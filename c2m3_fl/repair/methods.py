"""The repairs by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.moments import Spread

Method = Literal["repair-bounded", "repair", "repair-pooled", "recalibrate", "least-squares", "least-squares-bounded"]


@dataclass(frozen=True)
class Treatment:
    """What a repair does.

    Attributes
    ----------
    spread
        Which standard deviation of the clients to aim at; None to aim at nothing and recompute running statistics alone.
    bounded
        Whether no channel's weights are scaled beyond the largest norm that a client has there.
    ridge
        Of the least squares by which matrices are fitted; None where they are scaled as all other layers.
    """

    spread: Spread | None
    bounded: bool = False
    ridge: float | None = None


TREATMENTS: Final[dict[Method, Treatment]] = {
    "repair-bounded": Treatment("mean", bounded=True),
    "repair": Treatment("mean"),
    "repair-pooled": Treatment("pooled"),
    "recalibrate": Treatment(None),
    "least-squares": Treatment("mean", ridge=0.03),
    "least-squares-bounded": Treatment("mean", bounded=True, ridge=0.1),
}


def treatment(method: str) -> Treatment:
    """What a repair does, by its name.

    Raises
    ------
    RepairError
        If there is none of that name.
    """
    for name, found in TREATMENTS.items():
        if name == method:
            return found
    raise RepairError(f"unknown method {method!r}; use one of {', '.join(map(repr, get_args(Method)))}")


BOUNDED: Final = "repair-bounded"
"""REPAIR for networks that are trained on."""
