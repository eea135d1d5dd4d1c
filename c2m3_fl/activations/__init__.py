"""What repair, guard and activation matching share: calibration data, a private network, its sites and their moments."""

from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.moments import Moments, Statistics, from_arrays, goal, measure, to_arrays

__all__ = ["Moments", "RepairError", "Statistics", "from_arrays", "goal", "measure", "to_arrays"]
