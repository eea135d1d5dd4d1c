"""All of C2M3 in one call: align the clients, average them in the universe, repair the average (Algorithm 2 and A.4).

This is for networks at hand. Who merges round after round prepares a `c2m3_fl.merger.Merger` once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from c2m3_fl.activations.calibration import Calibration, CalibrationSet
from c2m3_fl.activations.network import Architecture
from c2m3_fl.errors import ClientError
from c2m3_fl.matching import Matcher
from c2m3_fl.merger import Merger
from c2m3_fl.options import DEFAULTS, Classifier, MergeOptions, Repair
from c2m3_fl.predictions import Predictions, TaskName
from c2m3_fl.robust import Robust
from c2m3_fl.round import Clients
from c2m3_fl.session import Aggregation
from c2m3_fl.symmetry import PermutationSpec

__all__ = ["Aggregation", "aggregate"]


def aggregate(
    module: Architecture,
    state_dicts: Sequence[Mapping[str, Any]],
    *,
    weights: Sequence[float] | None = None,
    spec: PermutationSpec | None = None,
    calibration: Calibration | CalibrationSet | None = None,
    matcher: str | Matcher = DEFAULTS.matcher,
    repair: Repair | None = DEFAULTS.repair,
    activations: float = DEFAULTS.activations,
    classifier: Classifier = DEFAULTS.classifier,
    guard: bool = DEFAULTS.guard,
    robust: Robust | None = DEFAULTS.robust,
    group_size: int | None = DEFAULTS.group_size,
    predictions: Predictions | None = DEFAULTS.predictions,
    task: TaskName | None = DEFAULTS.task,
    device: str | torch.device = DEFAULTS.device,
) -> Aggregation:
    """Merge clients' networks: align, average in the universe, repair.

    Parameters
    ----------
    module
        The clients' architecture, or a factory of it. It is not changed; its own weights matter only for tensors that
        the clients' state dicts leave out.
    state_dicts
        The clients' tensors, or NumPy arrays.
    weights
        One non-negative weight per client, for example its number of examples; None for equal weights. They enter the
        matching, the average and the repair.
    spec
        The permutation groups; None to find them by tracing the module on the first batch of `calibration`.
    calibration
        Inputs for the repair and the guard, with targets if they are known (see
        `c2m3_fl.activations.calibration.CalibrationSet.read`); None for neither.
    matcher, repair, activations, classifier, guard, robust, group_size, predictions, task, device
        See `c2m3_fl.options.MergeOptions`.

    Returns
    -------
    Aggregation
        With the merged state dict, on the device of the first client's tensors. The same to the bit for the same clients
        in any order.

    Raises
    ------
    ClientError
        Naming the client that cannot be merged, or whose weight is unusable.
    SpecError
        If the spec does not fit, or there is neither a spec nor an input to trace the module with.
    RepairError
        If the calibration set is empty or malformed, or does not fit the module.
    OptionError
        If there is no such option.
    """
    options = MergeOptions(
        matcher=matcher,
        repair=repair,
        activations=activations,
        classifier=classifier,
        guard=guard,
        robust=robust,
        group_size=group_size,
        predictions=predictions,
        task=task,
        device=device,
    )
    if len(state_dicts) == 0:
        raise ClientError("there are no clients to merge")
    merger = Merger.prepare(module, spec, calibration, options, sent=state_dicts[0].keys())
    return merger.merge(Clients.of(state_dicts, weights, merger.layout_like(state_dicts[0])))
