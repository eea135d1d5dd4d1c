"""What of an output are predictions, what task they solve, and how it is judged."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from c2m3_fl import OptionError, RepairError
from c2m3_fl.guard import target
from c2m3_fl.predictions import PredictionReader, Task, TaskName, find_task

A = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
B = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
Named = namedtuple("Named", ["ids", "scores"])


@dataclass
class Output:
    loss: Tensor | None
    hidden: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    ("output", "path"),
    [
        (A, ""),
        ((A, B), "0"),
        ([torch.arange(8), A], "1"),
        ({"hidden": B, "logits": A}, "logits"),
        (OrderedDict(aux=B, out=A), "out"),
        ({"x": {"y": A}}, "x.y"),
        (Output(None, B, A), "logits"),
        (Named(torch.arange(8), A), "1"),
    ],
)
def test_the_usual_is_known(output: Any, path: str) -> None:
    found = PredictionReader().locate(output)
    assert found[0] == path
    assert found[1] is A


def test_a_key_a_position_or_a_function_says_where() -> None:
    assert PredictionReader("hidden")({"hidden": B, "logits": A}) is B
    assert PredictionReader(1)((A, B)) is B
    assert PredictionReader("hidden")(Output(None, B, A)) is B
    assert PredictionReader(lambda output: output[0]["boxes"])([{"boxes": A}]) is A


@pytest.mark.parametrize("output", [torch.arange(3), "text", None, [], {"ids": torch.arange(3)}])
def test_without_predictions_the_way_out_is_named(output: Any) -> None:
    with pytest.raises(RepairError, match="predictions=KEY or predictions=FUNCTION"):
        PredictionReader()(output)
    with pytest.raises(RepairError, match="guard=False"):
        PredictionReader("missing")(output)


def test_half_precision_is_judged_in_single() -> None:
    assert PredictionReader()(A.half()).dtype == torch.float32


CLASSES = A.argmax(1)
MAPS = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(3))

TOLD: list[tuple[Tensor, Tensor, Task]] = [
    (A, CLASSES, Task("classes")),
    (MAPS, MAPS.argmax(1), Task("classes")),
    (TOKENS, TOKENS.argmax(2), Task("classes", -1)),
    (A[:, :1], (A[:, 0] > 0).long(), Task("labels")),
    (A[:, 0], (A[:, 0] > 0).float(), Task("labels")),
    (A, (A > 0).long(), Task("labels")),
    (A, (A > 0).float(), Task("labels")),
    (A, A + 1, Task("numbers")),
    (A[:, :1], A[:, 0], Task("numbers")),
    (A[:, :1], torch.arange(8), Task("numbers")),
]


@pytest.mark.parametrize(("prediction", "targets", "task"), TOLD)
def test_targets_tell_the_task(prediction: Tensor, targets: Tensor, task: Task) -> None:
    assert find_task(None, [prediction], [targets]) == task


def test_a_softmax_tells_classes_and_bare_numbers_tell_nothing() -> None:
    assert find_task(None, [A.softmax(1)], None) == Task("classes")
    assert find_task(None, [A.log_softmax(1)], None) == Task("classes")
    assert find_task(None, [A], None, "logits") == Task("classes")
    assert find_task(None, [A], None) == Task("numbers", known=False)
    assert find_task("classification", [A], None) == Task("classes")


def test_a_task_that_does_not_exist_or_fit_is_refused() -> None:
    with pytest.raises(OptionError, match="no task 'sorting'"):
        find_task("sorting", [A], None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no scores of classes"):
        find_task("classification", [A[:, :1]], None)
    for wrong in (torch.full((8,), 3), torch.full((8,), -2), torch.zeros(8, 2)):
        with pytest.raises(RepairError, match="do not fit outputs"):
            find_task("classification", [A], [wrong])
    with pytest.raises(RepairError, match="do not fit outputs"):
        find_task("binary", [A[:, :1]], [torch.full((8,), 2)])


def judged(name: TaskName, prediction: Tensor, targets: Tensor) -> tuple[float, float]:
    wanted = target(find_task(name, [prediction], [targets]), [[prediction]], [1.0], [targets])
    loss, number = wanted.task.loss(prediction, wanted.wanted[0], wanted.probabilities)
    return float(loss) / number, wanted.task.errors(prediction, wanted.wanted[0], wanted.probabilities)


def test_losses_are_those_of_torch() -> None:
    wrong = (CLASSES + (torch.arange(8) % 3 == 0).long()) % 3
    expected = float(functional.cross_entropy(A.double(), wrong)), 3.0
    assert judged("classification", A, wrong) == pytest.approx(expected)
    assert judged("classification", A.softmax(1), wrong) == pytest.approx(expected, rel=1e-5)
    assert judged("classification", A.log_softmax(1), wrong) == pytest.approx(expected, rel=1e-5)
    maps = MAPS.argmax(1)
    maps[:, 0, 0] = -100
    assert judged("segmentation", MAPS, maps)[0] == pytest.approx(float(functional.cross_entropy(MAPS.double(), maps)))
    tokens = TOKENS.argmax(2)
    expected_loss = float(functional.cross_entropy(TOKENS.double().movedim(2, 1), tokens))
    assert judged("sequence", TOKENS, tokens) == pytest.approx((expected_loss, 0.0))
    labels = (B > 0.3).long()
    expected_loss = float(functional.binary_cross_entropy_with_logits(B.double(), labels.double()))
    assert judged("multilabel", B, labels)[0] == pytest.approx(expected_loss)
    assert judged("multilabel", B.sigmoid(), labels)[0] == pytest.approx(expected_loss, rel=1e-5)
    assert judged("regression", B, B + 2)[0] == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("name", ["classification", "binary", "regression"])
def test_an_ensemble_stands_in_for_targets(name: TaskName) -> None:
    own = [[A], [A + 0.1], [-A]]
    predictions = [[each[0][:, :1]] for each in own] if name == "binary" else own
    found = target(find_task(name, predictions[0], None), predictions, [1.0, 1.0, 0.5], None)
    best = predictions[0][0] if name != "regression" else (2 * A + 0.1 - 0.5 * A) / 2.5
    if name == "regression":
        torch.testing.assert_close(found.wanted[0], best.double(), rtol=1e-5, atol=1e-6)
        assert found.doubt == 0
    else:
        agree = found.task.errors(best, found.wanted[0], found.probabilities)
        assert agree <= 1
        assert 0 < found.doubt < 0.6
