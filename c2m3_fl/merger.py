"""What a merge needs besides the clients: read, traced and rehearsed once, then used in every round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from c2m3_fl.activations.calibration import Calibration, CalibrationSet
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.network import Architecture, private_network
from c2m3_fl.device import resolve_device
from c2m3_fl.errors import ClientError
from c2m3_fl.layout import Layout, layout_of
from c2m3_fl.options import MergeOptions
from c2m3_fl.round import Clients
from c2m3_fl.session import Aggregation, Session
from c2m3_fl.symmetry import PermutationSpec, SpecError
from c2m3_fl.symmetry.wrappers import plain_module


@dataclass(frozen=True)
class Merger:
    """What a merge needs besides the clients: prepared once, used in every round.

    Attributes
    ----------
    module
        The clients' architecture.
    spec
        The permutation groups of what the clients send.
    options
        How to merge.
    data
        The calibration set.
    layout
        What the clients' tensors must be.
    trained_on
        Whether clients go on from the merged network, round after round.
    """

    module: nn.Module
    spec: PermutationSpec
    options: MergeOptions
    data: CalibrationSet | None
    layout: Layout
    trained_on: bool = False

    @classmethod
    def prepare(
        cls,
        module: Architecture,
        spec: PermutationSpec | None,
        calibration: Calibration | CalibrationSet | None,
        options: MergeOptions,
        *,
        sent: Collection[str] | None = None,
        trained_on: bool = False,
    ) -> Merger:
        """Read the calibration set and find the permutation groups.

        Parameters
        ----------
        module, spec, calibration, options, trained_on
            See `Merger`; without a spec, it is traced.
        sent
            Names of the tensors that the clients send; None for all.

        Raises
        ------
        SpecError
            If the spec does not fit the module, or there is neither a spec nor an input to trace the module with.
        RepairError
            If the calibration set is empty or malformed.
        """
        network = plain_module(module if isinstance(module, nn.Module) else module())
        data = None if calibration is None else CalibrationSet.read(calibration, network)
        state = network.state_dict()
        found = spec if spec is not None else trace(network, data)
        if sent is None or set(found.tensors) != set(sent):
            found.check(state)
        merger = cls(network, found, options, data, layout_of(state), trained_on)
        return merger if sent is None else merger.restricted_to(sent)

    def restricted_to(self, sent: Collection[str]) -> Merger:
        """The same for clients that send only some of the tensors; the others are the module's."""
        layout = {name: expected for name, expected in self.layout.items() if name in sent}
        spec = self.spec if set(self.spec.tensors) == set(layout) else self.spec.restricted(layout)
        return replace(self, spec=spec, layout=layout)

    def layout_like(self, state_dict: Mapping[str, Any]) -> Layout:
        """What the clients' tensors must be, if they are of the dtypes that these are."""
        return {
            name: expected.of_dtype(torch.as_tensor(state_dict[name]).dtype) if name in state_dict else expected
            for name, expected in self.layout.items()
        }

    def rehearse(self) -> Aggregation:
        """One whole merge of the module's own network, which meets every mistake of the set-up.

        Raises
        ------
        RepairError
            If a forward pass fails, targets do not fit the outputs, or values are not finite.
        OptionError
            If options do not fit the module.
        """
        state = self.module.state_dict()
        try:
            return self.merge(Clients.of([{name: state[name] for name in self.layout}], None, self.layout))
        except ClientError as error:
            raise RepairError(f"the module itself cannot be merged: {error}") from error

    def merge(self, clients: Clients) -> Aggregation:
        """Merge the clients of one round.

        Raises
        ------
        ClientError
            If no client's network is sound on the calibration set.
        RepairError
            If a forward pass fails, or the targets do not fit the outputs.
        """
        with private_network(self.module, resolve_device(self.options.device), self.layout) as network:
            return Session(network, self.spec, self.options, self.data, self.trained_on).run(clients)


def trace(module: nn.Module, calibration: CalibrationSet | None) -> PermutationSpec:
    """Find a module's permutation groups with the first two inputs of a calibration set.

    Raises
    ------
    SpecError
        If there is no input, or the module cannot be traced.
    """
    if calibration is None:
        raise SpecError(
            "the permutation groups are unknown: give a spec, or calibration inputs to trace the module with"
        )
    floats = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    example = calibration.batches[0].first(2).to(device, next(floats, None))
    return PermutationSpec.from_module(module, *example.args, kwargs=example.kwargs)
