"""`PermutationSpec`: permutation groups with what finds, proves and explains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from c2m3_fl.symmetry.axes import Axis, Factor, Permutations, Segment, SpecError, compose, invert
from c2m3_fl.symmetry.explain import explain
from c2m3_fl.symmetry.groups import PermutationGroups, Pin
from c2m3_fl.symmetry.prove import prove as prove_groups
from c2m3_fl.symmetry.trace import trace
from c2m3_fl.symmetry.wrappers import plain_module

__all__ = ["Axis", "Factor", "PermutationSpec", "Permutations", "Pin", "Segment", "SpecError", "compose", "invert"]


@dataclass(frozen=True)
class PermutationSpec(PermutationGroups):
    """The permutation groups of one network: `PermutationGroups` together with what finds and explains them.

    Made by `from_module`, or by hand with `from_axes`.
    """

    @classmethod
    def from_module(
        cls, module: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None, prove: bool = True
    ) -> Self:
        """Find the groups of a network by tracing it, and prove them.

        Parameters
        ----------
        module
            The network. It is copied; its parameters, mode and everything else stay as they are. Where it is compiled or
            wrapped for data parallelism, the spec has the names of the network inside (`plain_module`).
        *inputs
            Example inputs of its `forward`, of the shapes that it will meet.
        kwargs
            Keyword arguments of its `forward`.
        prove
            Whether to test the groups by random permutations on the network's own outputs; a group that changes them
            is pinned.

        Returns
        -------
        PermutationSpec
            Its `pins` tell what could not move and why.

        Raises
        ------
        SpecError
            If the network cannot be traced, for example because its control flow depends on data.

        Examples
        --------
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> dict(PermutationSpec.from_module(net, torch.zeros(1, 4)).groups)
        {'0.out': 8}
        """
        module = plain_module(module)
        found = trace(module, inputs, kwargs or {})
        spec = cls(found.groups, found.tensors, found.carried, found.pins, found.tied)
        return prove_groups(spec, module, inputs, kwargs or {}) if prove else spec

    def explain(self) -> str:
        """Tables in plain text: groups, what they move, what share of the parameters that is, what stays and why."""
        return explain(self)
