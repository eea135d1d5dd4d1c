"""REPAIR: the activation statistics of merged networks, restored within the state dict they have."""

from c2m3_fl.repair.errors import RepairError
from c2m3_fl.repair.from_moments import repair_from_moments
from c2m3_fl.repair.moments import Moments, Statistics, from_arrays, goal, measure, to_arrays
from c2m3_fl.repair.sequential import repair

__all__ = [
    "Moments",
    "RepairError",
    "Statistics",
    "from_arrays",
    "goal",
    "measure",
    "repair",
    "repair_from_moments",
    "to_arrays",
]
