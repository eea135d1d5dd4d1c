"""Cycle-consistent multi-model merging for federated learning.

C2M3 (Crisostomi, Fumero, Baieri, Bernard and Rodolà, "C²M³: Cycle-Consistent Multi-Model Merging", NeurIPS 2024) maps
the neurons of n networks into one common universe, averages them there and repairs the activations of the average.
"""

from typing import TYPE_CHECKING, Any

from c2m3_fl.activations import RepairError
from c2m3_fl.aggregation import Aggregation, aggregate
from c2m3_fl.alignment import Alignment, align
from c2m3_fl.averaging import average
from c2m3_fl.errors import ClientError, OptionError
from c2m3_fl.hierarchy import align_in_groups
from c2m3_fl.symmetry import PermutationSpec, SpecError

if TYPE_CHECKING:
    from c2m3_fl.federation.strategy import C2M3

__version__ = "0.2.0"
"""The same as in pyproject.toml, which Flower reads; a test compares them."""

__all__ = [
    "C2M3",
    "Aggregation",
    "Alignment",
    "ClientError",
    "OptionError",
    "PermutationSpec",
    "RepairError",
    "SpecError",
    "__version__",
    "aggregate",
    "align",
    "align_in_groups",
    "average",
]


def __getattr__(name: str) -> Any:
    # Flower is imported only by those who use the strategy: the rest is plain torch and starts faster without it.
    if name == "C2M3":
        from c2m3_fl.federation.strategy import C2M3  # noqa: PLC0415

        return C2M3
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
