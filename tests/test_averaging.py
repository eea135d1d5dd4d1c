"""The weighted average."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from c2m3_fl import ClientError, average
from c2m3_fl.averaging import AverageMethod


def test_average_is_weighted_and_keeps_dtypes() -> None:
    clients = [
        {"w": torch.tensor([1.0, 3.0]), "half": torch.tensor([1.0], dtype=torch.float16), "steps": torch.tensor(10)},
        {"w": torch.tensor([5.0, 7.0]), "half": torch.tensor([3.0], dtype=torch.float16), "steps": torch.tensor(13)},
    ]
    merged = average(clients, [3, 1])
    assert torch.equal(merged["w"], torch.tensor([2.0, 4.0]))
    assert torch.equal(merged["half"], torch.tensor([1.5], dtype=torch.float16))
    assert torch.equal(merged["steps"], torch.tensor(11))
    assert {name: tensor.dtype for name, tensor in merged.items()} == {k: v.dtype for k, v in clients[0].items()}


def test_booleans_are_the_weighted_majority() -> None:
    clients = [{"mask": torch.tensor([True, True])}, {"mask": torch.tensor([False, True])}]
    assert average(clients, [1, 2])["mask"].tolist() == [False, True]


def test_equal_clients_average_to_themselves_to_the_bit() -> None:
    client = {"w": torch.randn(100, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(average([client] * 7, [1, 2, 3, 4, 5, 6, 7])["w"], client["w"])


def test_scaling_all_weights_and_clients_of_weight_zero_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    clients = [{"w": torch.randn(50, generator=generator)} for _ in range(3)]
    expected = average(clients, [1, 2, 3])["w"]
    assert torch.equal(average(clients, [8, 16, 24])["w"], expected)
    assert torch.equal(average([*clients, {"w": torch.randn(50)}], [1, 2, 3, 0])["w"], expected)


def test_bad_clients_and_weights_are_named() -> None:
    good = {"w": torch.zeros(2)}
    with pytest.raises(ClientError, match="client 1 cannot be merged: tensor 'w' has entries that are NaN"):
        average([good, {"w": torch.tensor([0.0, float("nan")])}])
    with pytest.raises(ClientError, match="client 1 cannot be merged: tensor 'v' is not in the model"):
        average([good, {"w": torch.zeros(2), "v": torch.zeros(2)}])
    with pytest.raises(ClientError, match="2 weights were given for 1 clients"):
        average([good], [1, 2])


@pytest.mark.parametrize("method", ["mean", "median", "trimmed-mean"])
def test_complex_numbers_stay_complex(method: AverageMethod) -> None:
    first, second = torch.tensor([0.88 + 0.48j]), torch.tensor([0.5 - 1.0j])
    assert torch.equal(average([{"cis": first}] * 2, method=method)["cis"], first)
    torch.testing.assert_close(average([{"c": first}, {"c": second}], method=method)["c"], torch.tensor([0.69 - 0.26j]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_size(dtype: torch.dtype) -> None:
    largest = torch.iinfo(dtype).max
    own = [{"n": torch.tensor([largest - 4, 3], dtype=dtype)}, {"n": torch.tensor([largest, 0], dtype=dtype)}]
    found = average(own)["n"]
    assert found.dtype == dtype
    assert found[0] == largest - 2
    assert average([own[1], own[1]])["n"].tolist() == own[1]["n"].tolist()


def test_what_all_hold_alike_stays_to_the_bit() -> None:
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    own = [{"x": third.clone(), "y": torch.tensor([float(i)])} for i in range(7)]
    assert torch.equal(average(own, [1, 2, 3, 4, 5, 6, 7])["x"], third)


def test_arrays_are_averaged_too() -> None:
    assert average([{"x": np.zeros(2)}, {"x": np.ones(2)}])["x"].tolist() == [0.5, 0.5]
