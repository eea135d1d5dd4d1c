"""The server's own data: the test set it judges networks on, and the calibration set it repairs them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clients.client_app import new_model
from clients.data import load_data
from clients.partition import hold_out
from clients.settings import ClientSettings
from clients.training import Score, choose_device, deterministic, predict, score

StateDict = Mapping[str, Tensor]


class TestSet:
    """Judges networks on the test set.

    Parameters
    ----------
    settings
        Names the data set and the network.
    device
        Where networks are evaluated; ``"auto"`` as in `choose_device`.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, settings: ClientSettings, device: str) -> None:
        test = load_data(settings.dataset, settings.data_dir, settings.download).test
        self._inputs, self._labels = test.inputs(), test.labels
        self._device = choose_device(device)
        self._model = global_model(settings)

    def _predict(self, state_dict: StateDict) -> Tensor:
        self._model.load_state_dict(state_dict)
        return predict(self._model, self._inputs, self._device)

    def score(self, state_dict: StateDict) -> Score:
        """Loss and accuracy of one network."""
        return score(self._predict(state_dict), self._labels)

    def score_clients(self, state_dicts: Sequence[StateDict]) -> tuple[list[Score], Score]:
        """Loss and accuracy of each network, and of their ensemble, the mean of the probabilities they predict."""
        predictions = [self._predict(state_dict) for state_dict in state_dicts]
        ensemble = torch.stack(predictions).exp().mean(dim=0).log()
        return [score(each, self._labels) for each in predictions], score(ensemble, self._labels)


def global_model(settings: ClientSettings) -> nn.Module:
    """The network that the server broadcasts first."""
    with deterministic(settings.seed):
        return new_model(settings)


def calibration_inputs(settings: ClientSettings) -> Tensor | None:
    """Inputs (N, C, H, W) of training examples that no client holds, or None where `calibration_size` is 0."""
    if settings.calibration_size == 0:
        return None
    train = load_data(settings.dataset, settings.data_dir, settings.download).train
    return train.select(hold_out(len(train), settings.calibration_size, settings.seed).calibration).inputs()
