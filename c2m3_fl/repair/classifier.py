r"""The last layer by multinomial logistic regression, for a merged network that nobody trains on from.

With the merged network's inputs :math:`x_i` of its last linear layer, wanted classes :math:`y_i` and the layer's own weights
:math:`W_0`, the layer gets

.. math:: \arg\min_{W, b} \frac1N \sum_i -\log\operatorname{softmax}(W x_i + b)_{y_i} + \frac\lambda2 \|W - W_0\|^2

with :math:`\lambda` relative to the mean square of the inputs. The problem is convex: the result depends on nothing but the
data. It fits confident predictions by large weights: clients that train on from there diverge within a few rounds.

It also fits whatever it is given, and little or foreign data mislead it more than any repair. So it is kept only where it is
the better one on examples that it has not seen (in four parts, each predicted by what was fitted to the other three),
where the wanted classes are expected to be right more often than not, and where every class is among them, none of them so
seldom that half as many equally frequent ones would be as varied (by the exponential of their entropy). What goes wrong
otherwise is in `docs/how-to/repair.md`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl.activations.calibration import Batch
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.network import Network
from c2m3_fl.activations.sites import Site

_log = logging.getLogger(__name__)

RIDGE = 0.01
MOST_DOUBT = 0.5
"""Share of the wanted classes that may be expected to be wrong."""

_MAX_STEPS = 500
_PARTS = 4

_Array = npt.NDArray[np.float64]


def refit_classifier(
    network: Network,
    merged: Mapping[str, Tensor],
    sites: Sequence[Site],
    batches: Sequence[Batch],
    wanted: Sequence[Tensor],
    *,
    doubt: float = 0.0,
    ridge: float = RIDGE,
) -> dict[str, Tensor]:
    """Refit the last layer of a merged network to classes, if that is an improvement.

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
    doubt
        Share of the classes that are expected to be wrong: 0 for labels, one less the ensemble's mean probability of the
        class that it predicts.
    ridge
        Penalty on the square of the weights' change, relative to the mean square of the layer's inputs.

    Returns
    -------
    dict
        The state dict with another last layer; the same where that is no improvement (see the module), and the log
        (level INFO) says so.

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
    problem = _Problem(inputs[counted].numpy(), classes[counted].numpy(), start, ridge, layer.bias is not None)
    if reason := problem.reason_against(doubt):
        _log.info("the classifier stays as it is: %s", reason)
        return {name: value.clone() for name, value in merged.items()}
    found = problem.solve(np.ones(len(problem.x), dtype=bool))
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


@dataclass(frozen=True, eq=False)
class _Problem:
    """Arguments of `logistic_regression`."""

    x: _Array
    classes: npt.NDArray[np.int64]
    start: _Array
    ridge: float
    intercept: bool

    def solve(self, used: npt.NDArray[np.bool_]) -> _Array:
        return logistic_regression(self.x[used], self.classes[used], self.start, self.ridge, intercept=self.intercept)

    def reason_against(self, doubt: float) -> str:
        """Why the layer is not to be refitted; empty if it is."""
        shares = np.bincount(self.classes, minlength=self.start.shape[1]) / max(1, len(self.classes))
        varied = np.exp(entropy(shares)) if len(self.classes) else 0.0
        if doubt > MOST_DOUBT:
            return f"{doubt:.0%} of the wanted classes are expected to be wrong"
        if shares.min() == 0 or varied < len(shares) / 2:
            return f"of {len(shares)} classes, {np.count_nonzero(shares)} are wanted, some seldom"
        return "" if self.improves() else "refitted, it is not better on examples that it has not seen"

    def improves(self) -> bool:
        """Whether there are fewer errors, and a smaller loss, where each part is predicted by the others' solution."""
        scores = np.empty((len(self.x), self.start.shape[1]))
        part = np.random.default_rng(0).permutation(len(self.x)) % _PARTS
        for index in range(_PARTS):
            scores[part == index] = self._scores(self.solve(part != index), part == index)
        before, after = self._judged(self._scores(self.start, part >= 0)), self._judged(scores)
        return after[0] < before[0] and after[1] < before[1]

    def _scores(self, weights: _Array, used: npt.NDArray[np.bool_]) -> _Array:
        found: _Array = log_softmax(self.x[used] @ weights[:-1] + weights[-1], axis=1)
        return found

    def _judged(self, scores: _Array) -> tuple[int, float]:
        """Errors and loss."""
        chosen = scores[np.arange(len(scores)), self.classes]
        return int((scores.argmax(1) != self.classes).sum()), -float(chosen.sum())


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
