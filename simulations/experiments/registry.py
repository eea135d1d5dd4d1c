"""All experiments, in the order of their pages."""

from __future__ import annotations

from simulations.experiments.federated import experiment as federated
from simulations.experiments.matching import activations, comparison, sets
from simulations.experiments.paper import (
    ablation,
    connectivity,
    convergence,
    cycle_consistency,
    increasing_n,
    matching_time,
    merging_five,
    pairwise_barriers,
    reference,
    seed_variance,
    similarity,
    starts,
    subsets,
    width,
)
from simulations.experiments.round import cost, scale
from simulations.laboratory.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    sets.EXPERIMENT,
    increasing_n.EXPERIMENT,
    subsets.EXPERIMENT,
    merging_five.EXPERIMENT,
    cycle_consistency.EXPERIMENT,
    ablation.EXPERIMENT,
    pairwise_barriers.EXPERIMENT,
    seed_variance.EXPERIMENT,
    starts.EXPERIMENT,
    width.EXPERIMENT,
    reference.EXPERIMENT,
    connectivity.EXPERIMENT,
    similarity.EXPERIMENT,
    convergence.EXPERIMENT,
    matching_time.EXPERIMENT,
    comparison.EXPERIMENT,
    activations.EXPERIMENT,
    federated.EXPERIMENT,
    scale.EXPERIMENT,
    cost.EXPERIMENT,
)
"""In the order of the pages."""
