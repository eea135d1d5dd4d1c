"""Reading the calibration set: inputs of any kind become arguments of a forward pass."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from c2m3_fl import RepairError
from c2m3_fl.activations.calibration import Batch, CalibrationSet

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class One(nn.Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x * scale


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class Named(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        return input_ids


class Anything(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


def read(calibration: Any, module: nn.Module | None = None) -> Batch:
    (batch,) = CalibrationSet.read(calibration, module or One()).batches
    return batch


@pytest.mark.parametrize(
    "calibration",
    [
        X,
        X.numpy(),
        [X],
        [X.numpy()],
        [(X,)],
        [[X, "text"]],
        {"x": X},
        [{"img": X}],
        [UserDict({"img": X})],
        iter([X]),
        DataLoader(TensorDataset(X), batch_size=6),
    ],
)
def test_a_single_input(calibration: Any) -> None:
    batch = read(calibration)
    (found,) = (*batch.args, *batch.kwargs.values())
    assert torch.equal(found, X)
    assert (batch.size, batch.targets) == (6, None)


@pytest.mark.parametrize(
    "targets",
    [Y, Y.numpy(), Y.int(), Y.to(torch.uint8), Y.tolist(), Y.numpy().astype(np.int16)],
)
def test_classes_of_any_integer_type(targets: Any) -> None:
    for batch in (read([(X, targets)]), read([{"img": X, "label": targets}]), read([({"x": X}, targets)])):
        assert batch.targets is not None
        assert batch.targets.dtype == torch.long
        assert torch.equal(batch.targets, Y)


def test_numbers_stay_numbers() -> None:
    found = read([(X, X[:, :2].double())]).targets
    assert found is not None
    assert found.dtype == torch.float64


def test_several_inputs() -> None:
    for calibration in ([(X, X + 1, Y)], [((X, X + 1), Y)], [{"left": X, "right": X + 1, "labels": Y}]):
        batch = read(calibration, Two())
        assert torch.equal(Two()(*batch.args, **batch.kwargs), X + (X + 1))
        assert batch.targets is not None
        assert torch.equal(batch.targets, Y)


def test_keyword_arguments_are_those_that_forward_knows() -> None:
    batch = read([{"input_ids": Y, "attention_mask": Y, "labels": Y}], Named())
    assert set(batch.kwargs) == {"input_ids", "attention_mask"}
    assert set(read([{"anything": X, "else": X}], Anything()).kwargs) == {"anything", "else"}


def test_what_cannot_be_told_is_refused_with_the_names() -> None:
    with pytest.raises(RepairError, match=r"'a', 'b', .*forward takes scale, x"):
        read([{"a": X, "b": X}])
    with pytest.raises(RepairError, match="batch 0 is str"):
        read(["text"])
    with pytest.raises(RepairError, match="6 inputs and 5 targets"):
        read([(X, Y[:5])])
    with pytest.raises(RepairError, match="targets of calibration batch 0 hold NaN"):
        read([(X, X / 0)])
    with pytest.raises(RepairError, match="holds no example"):
        read(X[:0])
    with pytest.raises(RepairError, match="DataLoader"):
        read(TensorDataset(X))
    with pytest.raises(RepairError, match="not a tensor or an iterable"):
        read(3)


def test_part_of_the_targets_counts_as_none() -> None:
    assert CalibrationSet.read([(X, Y), (X, None)], One()).targets is None
    assert len(CalibrationSet.read([(X, Y), (X, Y)], One())) == 12


def test_first_examples_and_dtypes() -> None:
    batch = Batch((X, {"mask": X > 0}), {"scale": 2.0, "table": torch.ones(3)}, 6, Y)
    first = batch.first(2)
    assert (first.size, len(first.args[0]), len(first.args[1]["mask"])) == (2, 2, 2)
    assert len(first.kwargs["table"]) == 3
    assert first.targets is not None
    assert torch.equal(first.targets, Y[:2])
    moved = batch.to(torch.device("cpu"), torch.float64)
    assert (moved.args[0].dtype, moved.args[1]["mask"].dtype) == (torch.float64, torch.bool)
    assert batch.first(None) is batch
