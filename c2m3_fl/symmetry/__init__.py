"""Permutation groups of a network: the spec, and how it acts on tensors."""

from c2m3_fl.symmetry.spec import (
    Axis,
    Factor,
    Permutations,
    PermutationSpec,
    Pin,
    Segment,
    SpecError,
    compose,
    invert,
)

__all__ = ["Axis", "Factor", "PermutationSpec", "Permutations", "Pin", "Segment", "SpecError", "compose", "invert"]
