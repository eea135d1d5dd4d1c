"""Inputs and outputs of any kind."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2m3_fl.symmetry import PermutationSpec, SpecError
from c2m3_fl.symmetry.outputs import tensors_of

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None
    past_key_values: Any = None


class Box:
    """No container that anybody knows."""

    def __init__(self, content: Any) -> None:
        self.content = content


class Cache:
    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Net(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap
        self.first, self.second, self.out = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.second(torch.relu(self.first(x))))
        return self.wrap(self.out(h), h)


WITHOUT_HIDDEN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda y, h: (y, None),
    "nested lists": lambda y, h: [y, [y.sum(), 3]],
    "dict": lambda y, h: {"y": y, "name": "net", "n": 3},
    "OrderedDict": lambda y, h: OrderedDict(out=y, aux=y * 2),
    "named tuple": lambda y, h: Pair(y, y),
    "dataclass": lambda y, h: Output(y),
    "a detector's lists": lambda y, h: [{"boxes": y, "scores": y.softmax(-1)}],
    "an object": lambda y, h: Box([y]),
    "a distribution": lambda y, h: torch.distributions.Normal(y, 1.0, validate_args=False),
    "a cache of states": lambda y, h: Output(y, past_key_values=((h, h),)),
    "a cache's class": lambda y, h: (y, Cache(h)),
}
WITH_HIDDEN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda y, h: (y, h),
    "dataclass": Output,
    "an object inside of a dict": lambda y, h: {"y": y, "box": Box({"h": h})},
    "a set": lambda y, h: (y, frozenset([h])),
}


@pytest.mark.parametrize("name", WITHOUT_HIDDEN)
def test_outputs_of_any_kind_are_traced_and_proved(name: str) -> None:
    assert PermutationSpec.from_module(Net(WITHOUT_HIDDEN[name]), torch.randn(2, 4)).groups == {"first": 6, "second": 5}


@pytest.mark.parametrize("name", WITH_HIDDEN)
def test_every_tensor_in_the_outputs_is_one(name: str) -> None:
    assert PermutationSpec.from_module(Net(WITH_HIDDEN[name]), torch.randn(2, 4)).groups == {"first": 6}


def test_no_tensor_at_all_is_an_error() -> None:
    with pytest.raises(SpecError, match="forward pass of Net returns no tensor"):
        PermutationSpec.from_module(Net(lambda y, h: {"name": "net"}), torch.randn(2, 4))


def test_an_object_that_holds_itself_ends() -> None:
    box = Box([torch.zeros(1)])
    box.content.append(box)
    assert len(tensors_of([box, box])) == 2


INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda x: {"x": x, "name": "example"},
    "tuple": lambda x: (x, 3),
    "dataclass": Output,
    "object": Box,
}
TAKEN: dict[str, Callable[[Any], Tensor]] = {
    "dict": lambda value: value["x"],
    "tuple": lambda value: value[0],
    "dataclass": lambda value: value.logits,
    "object": lambda value: value.content,
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_any_kind(name: str) -> None:
    class Taking(Net):
        def forward(self, x: Any) -> Any:
            return super().forward(TAKEN[name](x))

    spec = PermutationSpec.from_module(Taking(lambda y, h: y), INPUTS[name](torch.randn(2, 4)))
    assert spec.groups == {"first": 6, "second": 5}
