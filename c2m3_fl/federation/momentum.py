r"""Server momentum on top of the merged network: FedAvgM's step, with the average that C2M3 makes.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019:
the velocity :math:`v_t = \beta v_{t-1} + (y_t - x_t)` sums up what rounds changed, and the next global network is
:math:`x_{t+1} = x_t + v_t`, where clients train from :math:`x_t` and :math:`y_t` is what their networks are merged into.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

StateDict = Mapping[str, Tensor]


class ServerMomentum:
    """The velocity from round to round.

    Parameters
    ----------
    factor
        How much of the velocity each round keeps, from 0 up to but not including 1.
    parameters
        Names of the tensors that move. Others, such as BatchNorm's running statistics, stay as they are merged: a
        variance that is extrapolated may be negative.

    Raises
    ------
    ValueError
        If the factor is out of range.

    Attributes
    ----------
    velocity
        By name, float32; empty before the first step.
    """

    def __init__(self, factor: float, parameters: Collection[str]) -> None:
        if not 0 <= factor < 1:
            raise ValueError(f"server_momentum is {factor}; it is at least 0 and less than 1")
        self.factor = factor
        self._parameters = parameters
        self.velocity: dict[str, Tensor] = {}

    def step(self, broadcast: StateDict, merged: StateDict) -> dict[str, Tensor]:
        """The next global network; the first step is the merged network itself.

        Parameters
        ----------
        broadcast
            What the clients trained from.
        merged
            What their networks were merged into, neuron by neuron in the broadcast's order.
        """
        carried = {name: self.factor * velocity for name, velocity in self.velocity.items()}
        self.velocity = {name: merged[name].float() - broadcast[name].float() for name in self._parameters}
        if not carried:
            return dict(merged)
        self.velocity = {name: change + carried[name] for name, change in self.velocity.items()}
        return {
            name: (tensor.float() + carried[name]).to(tensor.dtype) if name in carried else tensor
            for name, tensor in merged.items()
        }

    def restart(self) -> None:
        """Forget the velocity: its neurons are no longer the global network's."""
        self.velocity = {}
