"""Local training learns, is repeatable, and leaves the process as it was."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from clients.models import build_model
from clients.training import Score, TrainOptions, derive_seed, deterministic, evaluate, predict, score, train

CPU = torch.device("cpu")
INPUTS = torch.randn(65, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0, 0, 0] > 0).long()
OPTIONS = TrainOptions(epochs=60, batch_size=32)


def trained(options: TrainOptions, seed: int = 0) -> tuple[nn.Module, float]:
    with deterministic(seed):
        model = build_model("mlp", input_shape=(1, 4, 4), num_classes=2, width=0.1)
        loss = train(model, INPUTS, LABELS, options, CPU)
    return model, loss


def distance_moved(options: TrainOptions) -> float:
    with deterministic(0):
        start = build_model("mlp", input_shape=(1, 4, 4), num_classes=2, width=0.1)
    end, _ = trained(options)
    moved = [(p - q).square().sum() for p, q in zip(start.parameters(), end.parameters(), strict=True)]
    return float(sum(moved).detach())


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, optimizer="adam", learning_rate=3e-3)])
def test_training_learns(options: TrainOptions) -> None:
    model, _ = trained(options)
    assert evaluate(model, INPUTS, LABELS, CPU).accuracy > 0.95


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = (trained(OPTIONS, seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_no_epoch_changes_nothing() -> None:
    assert distance_moved(replace(OPTIONS, epochs=0)) == 0


def test_the_proximal_term_holds_weights_near_their_start() -> None:
    assert 0 < distance_moved(replace(OPTIONS, proximal_mu=1.0)) < 0.5 * distance_moved(OPTIONS)


def test_the_proximal_term_is_half_the_squared_distance_once() -> None:
    options = replace(OPTIONS, epochs=3, batch_size=len(LABELS), momentum=0.0, learning_rate=0.1, proximal_mu=0.7)
    found, _ = trained(options)
    with deterministic(0):
        expected = build_model("mlp", input_shape=(1, 4, 4), num_classes=2, width=0.1)
    start = [p.detach().clone() for p in expected.parameters()]
    for _ in range(options.epochs):
        expected.zero_grad()
        functional.cross_entropy(expected(INPUTS), LABELS).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for p, p0 in zip(expected.parameters(), start, strict=True):
                assert p.grad is not None
                p.sub_(options.learning_rate * (p.grad + options.proximal_mu * (p - p0)))
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_weight_decay_shrinks_weights() -> None:
    norms = [
        sum(float(p.detach().square().sum()) for p in trained(replace(OPTIONS, weight_decay=decay))[0].parameters())
        for decay in (0.0, 0.1)
    ]
    assert norms[1] < norms[0]


def test_batch_norm_survives_a_batch_of_one_example_left_over() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    train(model, INPUTS, LABELS, replace(OPTIONS, epochs=1), CPU)  # 65 = 2 * 32 + 1


def test_the_last_epochs_mean_loss_is_returned() -> None:
    _, before = trained(replace(OPTIONS, epochs=1))
    _, after = trained(OPTIONS)
    assert after < before


def test_a_block_from_a_seed_leaves_the_process_as_it_was() -> None:
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with deterministic(5, threads=1):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_seeds_for_different_purposes_differ() -> None:
    seeds = {derive_seed(a, b, c) for a in range(4) for b in range(4) for c in range(1, 4)}
    assert len(seeds) == 48
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)


def test_a_score_is_the_mean_over_examples() -> None:
    predictions = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.7, 0.3]]).log()
    result = score(predictions, torch.tensor([0, 1, 1, 0]))
    expected = -float(torch.tensor([0.9, 0.6, 0.2, 0.7]).log().mean())
    assert result == Score(loss=pytest.approx(expected), accuracy=0.75, num_examples=4)


def test_predictions_do_not_depend_on_how_inputs_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = trained(OPTIONS)
    whole = predict(model, INPUTS, CPU)
    monkeypatch.setattr("clients.training._EVALUATION_BATCH", 7)
    torch.testing.assert_close(predict(model, INPUTS, CPU), whole)
