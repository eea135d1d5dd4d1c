"""Robust averages, outliers, dissenters, weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from c2m3_fl import average
from c2m3_fl.robust import capped, dissenters, outliers


def clients(count: int, seed: int = 0, spread: float = 1.0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(40, 30, generator=generator)
    return [
        {"weight": base + spread * torch.randn(base.shape, generator=generator), "steps": torch.tensor(3 + i)}
        for i in range(count)
    ]


@given(count=st.integers(1, 12), seed=st.integers(0, 50))
def test_median_and_trimmed_mean_are_numpys_and_scipys(count: int, seed: int) -> None:
    given_ = clients(count, seed)
    values = np.stack([client["weight"].double().numpy() for client in given_])
    found = average(given_, method="median")
    np.testing.assert_allclose(found["weight"], np.median(values, axis=0), rtol=1e-6)
    trimmed = average(given_, method="trimmed-mean")["weight"]
    share = 0.2 if count >= 5 else 1 / count if count > 2 else 0  # at least one of three or four
    np.testing.assert_allclose(trimmed, stats.trim_mean(values, share, axis=0), rtol=1e-6)
    assert found["weight"].dtype == torch.float32
    assert found["steps"].dtype == torch.int64


@pytest.mark.parametrize("method", ["median", "trimmed-mean"])
def test_one_client_cannot_leave_the_others_range(method: str) -> None:
    honest = clients(4)
    bad = {"weight": torch.full((40, 30), 1e20), "steps": torch.tensor(0)}
    found = average([*honest, bad], [1, 1, 1, 1, 1e9], method=method)["weight"]  # type: ignore[arg-type]
    stacked = torch.stack([client["weight"] for client in honest])
    assert bool((found <= stacked.amax(0)).all() and (found >= stacked.amin(0)).all())


def test_a_client_of_weight_zero_has_no_say_in_the_median() -> None:
    given_ = clients(3)
    found = average([*given_, clients(1, 9)[0]], [1, 1, 1, 0], method="median")
    assert torch.equal(found["weight"], average(given_, method="median")["weight"])


def test_an_unknown_average_is_an_error() -> None:
    with pytest.raises(ValueError, match="no average 'mode'"):
        average(clients(2), method="mode")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [3, 4, 5, 10, 30])
@pytest.mark.parametrize("seed", range(4))
def test_alike_clients_are_no_outliers(count: int, seed: int) -> None:
    assert outliers(clients(count, seed)) == {}


@pytest.mark.parametrize("count", [3, 5, 10])
def test_scaled_and_inverted_clients_are(count: int) -> None:
    for factor in (10.0, 5.0, -3.0, 0.0):
        given_ = clients(count, spread=0.2)
        given_[1] = {"weight": factor * given_[1]["weight"], "steps": torch.tensor(1)}
        assert list(outliers(given_)) == [1]


def test_there_is_no_majority_of_outliers() -> None:
    given_ = clients(5, spread=0.01)
    for i, client in enumerate(given_[:3]):
        client["weight"] = client["weight"] * (10 + i)
    assert len(outliers(given_)) <= 2
    assert outliers(given_[:2]) == {}


def test_equal_clients_are_equal() -> None:
    same = clients(1)[0]
    assert outliers([same] * 4) == {}
    other = {"weight": same["weight"] + 1e-3, "steps": torch.tensor(1)}
    assert list(outliers([same, same, same, other])) == [3]


def test_who_contradicts_the_others_dissents_and_who_knows_less_does_not() -> None:
    truth = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(0))
    one_class = torch.full_like(truth, 3)
    guess = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(1))
    votes = torch.stack([truth, truth, one_class, guess, truth, 9 - truth])
    assert list(dissenters(votes)) == [5]
    assert dissenters(votes[[0, 5]]) == {}
    votes[0] = -1  # predicts no classes
    assert list(dissenters(votes)) == [5]
    assert dissenters(torch.full((4, 0), -1)) == {}


def test_weights_are_capped_at_ten_times_the_median() -> None:
    assert capped([1, 2, 3]) == (1, 2, 3)
    assert capped([10, 20, 30, 1e12]) == (10, 20, 30, 200)
    assert capped([0, 5, 5, 1000]) == (0, 5, 5, 50)
