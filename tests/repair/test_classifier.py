"""The classifier refitted: against scikit-learn, and what it refuses."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from c2m3_fl.activations import RepairError
from c2m3_fl.activations.calibration import CalibrationSet
from c2m3_fl.activations.network import private_network
from c2m3_fl.repair.classifier import logistic_regression, refit_classifier
from tests.repair.networks import NETWORKS, State, client, inputs


def refitted(build: object, state: State, x: object, wanted: list[Tensor], doubt: float = 0.0) -> State:
    with private_network(build, torch.device("cpu")) as network:  # type: ignore[arg-type]
        batches = CalibrationSet.read(x, network.module).batches  # type: ignore[arg-type]
        network.load(state, "the state")
        return refit_classifier(network, state, network.sites(batches[0]), batches, wanted, doubt=doubt)


def learnable(name: str, examples: int) -> tuple[State, Tensor, Tensor]:
    """A network, inputs, and classes that another last layer would predict."""
    state, x = client(NETWORKS[name], 0), inputs(examples)
    module = NETWORKS[name]().eval()
    module.load_state_dict(state)
    seen: list[Tensor] = []
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        module(x)
    centred = (seen[0] - seen[0].mean(0)) / seen[0].std(0).clamp_min(1e-6)
    other = torch.randn(5, centred.shape[1], generator=torch.Generator().manual_seed(1))
    return state, x, (centred @ other.T).argmax(1)


def loss(build: object, state: State, x: Tensor, classes: Tensor) -> float:
    module = build().eval()  # type: ignore[operator]
    module.load_state_dict(state)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(x), classes))


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize("intercept", [True, False])
def test_the_regression_is_scikit_learns(ridge: float, intercept: bool) -> None:
    generator = np.random.default_rng(0)
    x, classes = generator.normal(size=(80, 7)) + 0.5, generator.integers(0, 4, 80)
    found = logistic_regression(x, classes, np.zeros((8, 4)), ridge, intercept=intercept)
    penalty = ridge * np.square(x).mean() * len(x)
    model = LogisticRegression(C=1 / penalty, fit_intercept=intercept, tol=1e-10, max_iter=10_000).fit(x, classes)
    np.testing.assert_allclose(found[:-1].T, model.coef_, rtol=1e-3, atol=1e-3)
    shift = found[-1] - found[-1].mean()
    np.testing.assert_allclose(shift, model.intercept_ - model.intercept_.mean(), rtol=1e-3, atol=1e-3)


def test_the_same_from_any_start_but_for_the_penalty() -> None:
    generator = np.random.default_rng(0)
    x, classes, start = generator.normal(size=(80, 7)), generator.integers(0, 4, 80), generator.normal(size=(8, 4))
    held = logistic_regression(x, classes, start, 1e9, intercept=True)
    np.testing.assert_allclose(held[:-1], start[:-1], atol=1e-6)
    assert not np.allclose(held[-1], start[-1])  # biases are free


@pytest.mark.parametrize("name", ["mlp", "resnet-batchnorm", "transformer", "torchvision convnext"])
def test_the_last_layer_alone_changes_and_the_loss_falls(name: str) -> None:
    state, x, classes = learnable(name, 200)
    fitted = refitted(NETWORKS[name], state, x, [classes])
    changed = {key for key in state if not torch.equal(state[key], fitted[key])}
    assert len(changed) == 2
    assert loss(NETWORKS[name], fitted, x, classes) < loss(NETWORKS[name], state, x, classes)
    parts = refitted(NETWORKS[name], state, x.split(70), list(classes.split(70)))
    for key, value in fitted.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-3, atol=1e-4)


def test_examples_without_a_class_do_not_count() -> None:
    state, x, classes = learnable("mlp", 240)
    some = refitted(NETWORKS["mlp"], state, x[:200], [classes[:200]])
    masked = refitted(NETWORKS["mlp"], state, x, [torch.where(torch.arange(240) < 200, classes, -100)])
    none = refitted(NETWORKS["mlp"], state, x, [torch.full((240,), -1)])
    assert not torch.equal(some["5.weight"], state["5.weight"])
    for key, value in some.items():
        torch.testing.assert_close(masked[key], value, rtol=1e-3, atol=1e-3)
        assert torch.equal(none[key], state[key])


class Tempered(nn.Module):
    """Class scores that are not the last layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(x.flatten(1))
        return 3 * scores


@pytest.mark.parametrize(
    ("build", "wanted", "words"),
    [
        (Tempered, torch.arange(24) % 5, "not that of its last layer 'last'"),
        (NETWORKS["mlp"], torch.arange(24), "up to 23"),
        (NETWORKS["mlp"], torch.zeros(3, dtype=torch.long), "3 classes"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.LayerNorm(5)), torch.zeros(24).long(), "not end in"),
        (nn.Flatten, torch.zeros(24).long(), "not end in"),
    ],
)
def test_what_cannot_be_refitted_is_refused(build: object, wanted: Tensor, words: str) -> None:
    state = {k: v.clone() for k, v in build().state_dict().items()}  # type: ignore[operator]
    with pytest.raises(RepairError, match=words):
        refitted(build, state, inputs(), [wanted])


def test_a_classifier_that_predicts_nothing_but_what_it_has_seen_is_not_kept() -> None:
    state, x = client(NETWORKS["mlp"], 0), inputs(60)
    classes = torch.randint(5, (60,), generator=torch.Generator().manual_seed(0))
    kept = refitted(NETWORKS["mlp"], state, x, [classes])
    assert all(torch.equal(kept[key], state[key]) for key in state)
    x, classes = learnable("mlp", 200)[1:]
    doubtful = refitted(NETWORKS["mlp"], state, x, [classes], doubt=0.6)
    assert all(torch.equal(doubtful[key], state[key]) for key in state)
    lacking = refitted(NETWORKS["mlp"], state, x[classes != 2], [classes[classes != 2]])
    assert all(torch.equal(lacking[key], state[key]) for key in state)
