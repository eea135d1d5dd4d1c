"""REPAIR: the activation statistics of merged networks, restored within the state dict they have."""

from c2m3_fl.activations.errors import RepairError
from c2m3_fl.repair.from_moments import repair_from_moments
from c2m3_fl.repair.sequential import repair

__all__ = ["RepairError", "repair", "repair_from_moments"]
