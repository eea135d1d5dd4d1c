"""What cannot be traced says in one sentence why, where and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from c2m3_fl.symmetry import PermutationSpec, SpecError
from tests.symmetry.networks import Function, asserted_small


def _net(function: Callable[[Tensor], Any]) -> nn.Module:
    return Function(lambda self, x: self.out(function(self.first(x))), first=nn.Linear(4, 6), out=nn.Linear(6, 3))


def _branch(y: Tensor) -> Tensor:
    if y.sum() > 0:  # the branch
        return y
    return y.flip(-1)


def _loop(y: Tensor) -> Tensor:
    while y.norm() > 1:  # the loop
        y = y / 2
    return y


@pytest.mark.parametrize("function", [_branch, _loop])
def test_control_flow_is_told_with_its_line(
    function: Callable[[Tensor], Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        PermutationSpec.from_module(_net(function), torch.randn(2, 4))
    message = str(caught.value)
    line = "if y.sum() > 0:  # the branch" if function is _branch else "while y.norm() > 1:  # the loop"
    assert message.startswith("Function cannot be traced: its control flow depends on the values of tensors, at ")
    assert re.search(rf"test_failures\.py:\d+: `{re.escape(line)}`", message)
    assert message.endswith("PermutationSpec.from_axes.")
    assert "\n" not in message
    assert len(message) < 600
    captured = capfd.readouterr()
    assert "def forward" not in captured.out + captured.err


KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "assertion about values": asserted_small,
    "a number read": lambda y: y[:, :1] * int(y.abs().sum()) + y,
    "NumPy": lambda y: torch.from_numpy(np.tanh(y.detach().numpy())),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_only_the_strict_way_can_record_is_traced_by_it(name: str) -> None:
    spec = PermutationSpec.from_module(_net(KNOWN[name]), torch.randn(2, 4), prove=False)
    assert "out" not in spec.groups


def test_a_wrong_shape_is_called_that() -> None:
    with pytest.raises(SpecError) as caught:
        PermutationSpec.from_module(_net(torch.relu), torch.randn(2, 5))
    message = str(caught.value)
    assert message.startswith("the forward pass of Function fails on the example input of shape (2, 5) (float32): ")
    assert "2x5 and 4x6" in message
    assert "test_failures.py:" in message
    assert "traced" not in message


def test_a_wrong_type_and_missing_inputs_are_called_that() -> None:
    with pytest.raises(SpecError, match=r"example input of shape \(2, 4\) \(int64\)"):
        PermutationSpec.from_module(_net(torch.relu), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(SpecError, match="example input that was given"):
        PermutationSpec.from_module(nn.Bilinear(2, 2, 2))


def test_long_messages_are_cut() -> None:
    dumped = "word " * 500 + "\ngraph():\n    %x = placeholder"

    def fail(y: Tensor) -> Tensor:
        raise RuntimeError(dumped)

    with pytest.raises(SpecError) as caught:
        PermutationSpec.from_module(_net(fail), torch.randn(2, 4))
    assert len(str(caught.value)) < 900
    assert "graph()" not in str(caught.value)
    assert "word ..." in str(caught.value)


def test_tensors_without_a_shape_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(SpecError, match="have no shape yet: run it once"):
        PermutationSpec.from_module(nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(3)), torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_network_is_an_error_in_one_sentence() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    with pytest.raises(SpecError, match=r"cannot be traced.*from_axes"):
        PermutationSpec.from_module(scripted, torch.randn(2, 4))


def test_a_pass_for_training_that_cannot_be_recorded_leaves_its_parameters_where_they_are() -> None:
    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
            self.mask = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            if self.training:
                _loop(y)
                y = y + self.mask
            return self.out(torch.relu(y))

    spec = PermutationSpec.from_module(Mask(), torch.randn(2, 4))
    assert spec.groups == {"first": 6}
    assert [pin.what for pin in spec.pins if "not reached" in pin.reason] == ["mask"]


def test_a_mask_token_that_is_used_in_training_only_moves_along() -> None:
    """As in Wav2Vec2: which steps are masked is drawn outside of torch."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
            self.mask = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            if self.training:
                y = y.clone()
                y[torch.from_numpy(np.random.default_rng(0).random(len(x)) > 0.5)] = self.mask
            return self.out(torch.relu(y))

    spec = PermutationSpec.from_module(Masked(), torch.randn(4, 4))
    assert spec.groups == {"first": 6}
    assert "first" in spec.tensors["mask"][0].groups
