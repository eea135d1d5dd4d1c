"""Analysis: loss barriers and landscapes, cycle error, similarity of weights and representations."""

from c2m3_fl.analysis.barrier import Curve, Loss, curve, interpolate, loss_barrier, positions
from c2m3_fl.analysis.distance import cosine_similarity, cycle, cycle_error, distance
from c2m3_fl.analysis.landscape import Landscape, Plane, landscape
from c2m3_fl.analysis.representation import gram_cka, gram_matrices, linear_cka, representation_distance

__all__ = [
    "Curve",
    "Landscape",
    "Loss",
    "Plane",
    "cosine_similarity",
    "curve",
    "cycle",
    "cycle_error",
    "distance",
    "gram_cka",
    "gram_matrices",
    "interpolate",
    "landscape",
    "linear_cka",
    "loss_barrier",
    "positions",
    "representation_distance",
]
