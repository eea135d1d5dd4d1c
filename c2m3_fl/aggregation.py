"""All of C2M3 in one call: align the clients, average them in the universe, repair the average (Algorithm 2 and A.4)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from c2m3_fl.alignment import Alignment, align
from c2m3_fl.averaging import average
from c2m3_fl.matching import Matcher
from c2m3_fl.repair.calibration import Calibration, read_batches
from c2m3_fl.repair.network import Architecture
from c2m3_fl.repair.sequential import Method
from c2m3_fl.repair.sequential import repair as repair_network
from c2m3_fl.symmetry import PermutationSpec, SpecError


@dataclass(frozen=True)
class Aggregation:
    """The result of `aggregate`.

    Attributes
    ----------
    state_dict
        The merged network: names, shapes and dtypes are the clients'.
    average
        The merged network before repair.
    alignment
        The clients' permutations into the universe, and how they were found.
    repair_seconds
        Wall time of the repair; 0 where there was none.
    """

    state_dict: dict[str, Tensor]
    average: dict[str, Tensor]
    alignment: Alignment
    repair_seconds: float


def aggregate(
    module: Architecture,
    state_dicts: Sequence[Mapping[str, Tensor]],
    *,
    weights: Sequence[float] | None = None,
    spec: PermutationSpec | None = None,
    matcher: str | Matcher = "default",
    calibration: Calibration | None = None,
    repair: Method | None = "repair",
    device: str | torch.device = "auto",
) -> Aggregation:
    """Merge clients' networks: align, average in the universe, repair.

    Parameters
    ----------
    module
        The clients' architecture, or a factory of it; its own weights do not matter and are not changed.
    state_dicts
        The clients' tensors.
    weights
        One non-negative weight per client, for example its number of examples; None for equal weights. They enter the
        matching, the average and the repair.
    spec
        The permutation groups; None to find them by tracing the module on the first batch of `calibration`.
    matcher
        See `align`.
    calibration
        Inputs for the repair: a tensor, or an iterable of batches; None for no repair.
    repair
        The method, see `c2m3_fl.repair.repair`; None for no repair.
    device
        ``"auto"`` (CUDA where present) or a torch device.

    Returns
    -------
    Aggregation
        With the merged state dict, on the device of the first client's tensors.

    Raises
    ------
    ClientError
        Naming the client that cannot be merged, or whose weight is unusable.
    SpecError
        If the spec does not fit, or there is neither a spec nor an input to trace the module with.
    RepairError
        If the calibration set is empty or malformed.
    """
    batches = None if calibration is None else read_batches(calibration)
    found = spec if spec is not None else trace(module, batches)
    alignment = align(state_dicts, found, weights=weights, matcher=matcher, device=device)
    mapped = alignment.apply(state_dicts)
    averaged = average(mapped, weights)
    if batches is None or repair is None:
        return Aggregation(averaged, averaged, alignment, 0.0)
    started = time.perf_counter()
    repaired = repair_network(module, averaged, mapped, batches, weights=weights, method=repair, device=device)
    return Aggregation(repaired, averaged, alignment, time.perf_counter() - started)


def trace(module: Architecture, batches: Sequence[Tensor] | None) -> PermutationSpec:
    """Find a module's permutation groups with the first two inputs of a calibration set.

    Raises
    ------
    SpecError
        If there is no input, or the module cannot be traced.
    """
    if not batches:
        raise SpecError(
            "the permutation groups are unknown: give a spec, or calibration inputs to trace the module with"
        )
    network = module if isinstance(module, nn.Module) else module()
    return PermutationSpec.from_module(network, batches[0][:2])
