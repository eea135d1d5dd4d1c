r"""The last layer by multinomial logistic regression, for a merged network that nobody trains on from.

With the merged network's inputs :math:`x_i` of its last linear layer, wanted classes :math:`y_i` and the layer's own weights
:math:`W_0`, the layer gets

.. math:: \arg\min_{W, b} \frac1N \sum_i -\log\operatorname{softmax}(W x_i + b)_{y_i} + \frac\lambda2 \|W - W_0\|^2

with :math:`\lambda` relative to the mean square of the inputs. The problem is convex: the result depends on nothing but the
data. It fits confident predictions by large weights: clients that train on from there diverge within a few rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl.activations.calibration import Batch
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.network import Network
from c2m3_fl.activations.sites import Site

RIDGE = 0.01
_MAX_STEPS = 500

_Array = npt.NDArray[np.float64]


def refit_classifier(
    network: Network,
    merged: Mapping[str, Tensor],
    sites: Sequence[Site],
    batches: Sequence[Batch],
    wanted: Sequence[Tensor],
    *,
    ridge: float = RIDGE,
) -> dict[str, Tensor]:
    """Refit the last layer of a merged network to classes.

    Parameters
    ----------
    network
        Where the merged network is loaded.
    merged
        Its state dict.
    sites
        Of the network.
    batches
        The calibration set.
    wanted
        Per batch the classes, LongTensor of shape ``(examples,)``: labels, or what the clients' ensemble predicts.
        Examples of a negative class do not count.
    ridge
        Penalty on the square of the weights' change, relative to the mean square of the layer's inputs.

    Returns
    -------
    dict
        The state dict with another last layer.

    Raises
    ------
    RepairError
        If the network does not end in a linear layer that gives class scores, or classes do not fit it.
    """
    network.load(merged, "the merged network")
    site = next((site for site in sites if site.is_output), None)
    layer = None if site is None else network.layer(site)
    if site is None or not isinstance(layer, nn.Linear) or not site.is_matrix or site.calls > 1:
        raise RepairError("the classifier cannot be refitted: the network does not end in a linear layer of its own")
    inputs = _inputs(network, site, batches)
    classes = torch.cat([each.to(torch.long).cpu() for each in wanted])
    if len(classes) != len(inputs) or int(classes.max()) >= layer.out_features:
        raise RepairError(
            f"the classifier cannot be refitted: {len(classes)} classes up to {int(classes.max())} do not fit "
            f"{len(inputs)} outputs of {layer.out_features} classes"
        )
    counted = classes >= 0
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    start = np.vstack([layer.weight.double().cpu().numpy().T, bias.double().cpu().numpy()])
    found = logistic_regression(
        inputs[counted].numpy(), classes[counted].numpy(), start, ridge, intercept=layer.bias is not None
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(found[:-1].T))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(found[-1]))
    return network.export(merged, [layer])


def logistic_regression(
    x: _Array, classes: npt.NDArray[np.int64], start: _Array, ridge: float, *, intercept: bool
) -> _Array:
    """Multinomial logistic regression with a penalty on the distance from where it starts.

    Parameters
    ----------
    x
        Inputs, shape ``(examples, inputs)``.
    classes
        Shape ``(examples,)``.
    start
        Weights and, in the last row, biases, shape ``(inputs + 1, classes)``.
    ridge
        See `refit_classifier`; the biases are not penalised.
    intercept
        Whether the biases may change.

    Returns
    -------
    ndarray
        Like `start`.
    """
    if not len(x):
        return start
    design = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.full((len(start), 1), ridge * float(np.square(x).mean()))
    penalty[-1] = 0.0
    chosen = np.eye(start.shape[1])[classes]

    def objective(flat: _Array) -> tuple[float, _Array]:
        weights = flat.reshape(start.shape)
        scores = log_softmax(design @ weights, axis=1)
        change = weights - start
        loss = -float((chosen * scores).sum()) / len(x) + 0.5 * float((penalty * change**2).sum())
        gradient = design.T @ (np.exp(scores) - chosen) / len(x) + penalty * change
        if not intercept:
            gradient[-1] = 0.0
        return loss, gradient.ravel()

    result = minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _MAX_STEPS, "gtol": 1e-7, "ftol": 1e-12},
    )
    found: _Array = result.x.reshape(start.shape)
    return found


def _inputs(network: Network, site: Site, batches: Sequence[Batch]) -> Tensor:
    """Inputs of the last layer, shape ``(examples, inputs)``, float64 on the CPU, if its outputs are the predictions."""
    kept: list[tuple[Tensor, Tensor]] = []

    def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], output: Tensor) -> None:
        kept.append((args[0] if args else kwargs["input"], output))

    with network.watched({site.name: hook}):
        for index, batch in enumerate(batches):
            prediction = network.forward(index, batch, "the merged network")
            output = kept[-1][1]
            if (
                not isinstance(prediction, Tensor)
                or prediction.dim() != 2
                or prediction.shape != output.shape
                or not torch.allclose(
                    functional.log_softmax(prediction.double(), 1),
                    functional.log_softmax(output.double(), 1),
                    atol=1e-3,
                )
            ):
                raise RepairError(
                    f"the classifier cannot be refitted: the module's output is not that of its last layer {site.name!r}"
                )
    return torch.cat([inputs for inputs, _ in kept]).double().cpu()
