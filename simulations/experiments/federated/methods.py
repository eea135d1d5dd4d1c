"""The strategies that are compared, each a few overrides of the run config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A strategy with its options.

    Attributes
    ----------
    label
        For tables and figures.
    colour
        Of its curves.
    overrides
        Fields of `SimulationSettings` and their values.
    """

    label: str
    colour: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "fedavg": Method("FedAvg", "#d9534f", {"strategy": "fedavg"}),
    "fedavg-repair": Method("FedAvg + REPAIR", "#d9822b", {"strategy": "c2m3", "matcher": "identity", "guard": False}),
    "fedavg-bounded": Method(
        "FedAvg + bounded REPAIR",
        "#d9822b",
        {"strategy": "c2m3", "matcher": "identity", "guard": False, "repair": "repair-bounded"},
    ),
    "c2m3-align": Method("C2M3, no REPAIR", "#7fb2dd", {"strategy": "c2m3-align", "guard": False}),
    "c2m3-repair": Method("C2M3 + REPAIR", "#5b9bd5", {"strategy": "c2m3", "guard": False}),
    "c2m3": Method("C2M3 + REPAIR, guard", "#0b3d78", {"strategy": "c2m3"}),
    "c2m3-default": Method("C2M3 as it is: least squares, guard", "#1b7837", {"strategy": "c2m3", "repair": "auto"}),
    "c2m3-once": Method("C2M3 + least squares, guard", "#1b7837", {"strategy": "c2m3", "repair": "least-squares"}),
    "c2m3-unbounded": Method("C2M3 + unbounded REPAIR, guard", "#c77cba", {"strategy": "c2m3", "repair": "repair"}),
    "c2m3-momentum": Method(
        "C2M3 + REPAIR, guard, server momentum 0.5", "#08306b", {"strategy": "c2m3-momentum", "server_momentum": 0.5}
    ),
    "c2m3-recalibrate": Method(
        "C2M3 + recalibrated BatchNorm, guard", "#6c757d", {"strategy": "c2m3", "repair": "recalibrate"}
    ),
    "c2m3-groups": Method("C2M3 + REPAIR, guard, in groups of 3", "#3e7cb1", {"strategy": "c2m3", "group_size": 3}),
    "c2m3-private": Method(
        "C2M3 + REPAIR by clients", "#2a9d8f", {"strategy": "c2m3", "moments_from": "clients", "guard": False}
    ),
    "fedprox": Method("FedProx", "#3a9a6e", {"strategy": "fedprox"}),
    "fedavgm": Method("FedAvgM", "#8a5fbf", {"strategy": "fedavgm", "server_momentum": 0.5}),
    "fedadam": Method("FedAdam", "#b07aa1", {"strategy": "fedadam"}),
    "fedmedian": Method("FedMedian", "#9aa0a6", {"strategy": "fedmedian"}),
}
"""By name. FedAvgM's momentum and FedAdam's step, which is Flower's default, are the best of those tried on digits with
another seed: momentum 0.9 and 0.5; steps of 0.01, 0.03 and 0.1."""
