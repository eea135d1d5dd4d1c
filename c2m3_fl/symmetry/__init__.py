"""Permutation groups of a network: the spec, and how it acts on tensors."""

from c2m3_fl.symmetry.axes import Axis, Factor, Permutations, Segment, SpecError, compose, invert
from c2m3_fl.symmetry.explain import moved_share, shortcomings
from c2m3_fl.symmetry.groups import PermutationGroups, Pin
from c2m3_fl.symmetry.spec import PermutationSpec
from c2m3_fl.symmetry.wrappers import plain_module, plain_name

__all__ = [
    "Axis",
    "Factor",
    "PermutationGroups",
    "PermutationSpec",
    "Permutations",
    "Pin",
    "Segment",
    "SpecError",
    "compose",
    "invert",
    "moved_share",
    "plain_module",
    "plain_name",
    "shortcomings",
]
