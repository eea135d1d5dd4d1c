"""The kinds of networks, inputs, outputs and records that people federate, as a table: the drop-in tests run it.

Each kind is a set-up in which clients hold one network in several permutations: what a strategy that works gives back is
that network's function.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

FEATURES, HIDDEN, CLASSES = 6, 12, 3


def inputs(seed: int = 0, examples: int = 96) -> Tensor:
    return torch.randn(examples, FEATURES, generator=torch.Generator().manual_seed(seed))


def perceptron(outputs: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))


class Wrapped(nn.Module):
    """A perceptron whose output is dressed up."""

    def __init__(self, dress: Callable[[Tensor, Tensor], Any], outputs: int = CLASSES) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, 8), nn.Linear(8, outputs)
        self.dress = dress

    def forward(self, x: Tensor) -> Any:
        hidden = functional.relu(self.b(functional.relu(self.a(x))))
        return self.dress(self.c(hidden), hidden)


@dataclass
class Output:
    """What Hugging Face's models give: a dataclass with optional parts."""

    logits: Tensor
    hidden: Tensor | None = None


class Autoencoder(nn.Module):
    """A variational autoencoder: draws random numbers, gives three tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, 4)
        self.spread, self.decode = nn.Linear(HIDDEN, 4), nn.Linear(4, HIDDEN)
        self.out = nn.Linear(HIDDEN, FEATURES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = functional.relu(self.encode(x))
        mean, spread = self.mean(hidden), self.spread(hidden)
        code = mean + 1e-3 * torch.randn_like(mean) * spread.exp()
        return self.out(functional.relu(self.decode(code))), mean, spread


class Segmenter(nn.Module):
    """Scores of classes at every position, under the key that torchvision uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, HIDDEN, 3, padding=1), nn.Conv2d(HIDDEN, CLASSES, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(out=self.b(functional.relu(self.a(x))))


class Tagger(nn.Module):
    """Scores of classes for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(20, 8), nn.Linear(8, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        hidden = functional.relu(self.a(self.table(input_ids)))
        return Output(self.b(hidden if attention_mask is None else hidden * attention_mask[..., None]))


class Pair(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN)
        self.out = nn.Linear(HIDDEN, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        result: Tensor = self.out(functional.relu(self.left(left) + self.right(right)))
        return result


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter: only the adapter and the head are trained and sent."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(FEATURES, HIDDEN)
        self.A, self.B = nn.Parameter(torch.randn(4, FEATURES)), nn.Parameter(torch.randn(HIDDEN, 4))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(functional.relu(self.base(x) + (x @ self.A.T) @ self.B.T))
        return result


class Personal(nn.Module):
    """A network with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, 10)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(functional.relu(self.b(functional.relu(self.norm(self.a(x))))))
        return result


class Rotary(nn.Module):
    """A buffer of complex numbers and one that is infinite by design."""

    angles: Tensor
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, 8), nn.Linear(8, CLASSES)
        self.register_buffer("angles", torch.polar(torch.ones(4), torch.linspace(0, 1, 4)))
        self.register_buffer("mask", torch.full((8, 8), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.b(functional.relu(self.a(x)))
        turned = torch.view_as_real(torch.view_as_complex(hidden.reshape(-1, 4, 2)) * self.angles).flatten(1)
        mixed = (self.mask + torch.eye(8)).softmax(1) @ turned.T
        result: Tensor = self.c(mixed.T)
        return result


class Observed(nn.Module):
    """An observer's range, which is infinite until something is observed."""

    low: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()
        self.register_buffer("low", torch.full((2,), float("inf")))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result


def _all(state_dict: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord(dict(state_dict))


def _part(*prefixes: str) -> Callable[[Mapping[str, Tensor]], ArrayRecord]:
    return lambda state: ArrayRecord({name: tensor for name, tensor in state.items() if name.startswith(prefixes)})


def _prefixed(prefix: str) -> Callable[[Mapping[str, Tensor]], ArrayRecord]:
    return lambda state: ArrayRecord({prefix + name: tensor for name, tensor in state.items()})


def _numbered(state_dict: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord([tensor.numpy() for tensor in state_dict.values()])


def _single(state_dict: Mapping[str, Tensor]) -> ArrayRecord:
    """Flower's records carry no bfloat16."""
    return ArrayRecord({name: tensor.float() for name, tensor in state_dict.items()})


@dataclass(frozen=True)
class Kind:
    """A set-up.

    Attributes
    ----------
    module
        Makes the network.
    calibration
        What the operator gives; targets are those that the network meets.
    arguments
        Of a forward pass that shows the network's function.
    send
        What goes over the wire of a state dict.
    options
        Of the strategy.
    tolerance
        Of the function, relative to its largest value.
    groups
        How many permutation groups move at least.
    """

    module: Callable[[], nn.Module]
    calibration: Callable[[nn.Module], Any] = lambda module: inputs()
    arguments: Callable[[], tuple[Any, ...]] = lambda: (inputs(1),)
    send: Callable[[Mapping[str, Tensor]], ArrayRecord] = _all
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    groups: int = 1


def _out(module: nn.Module, *arguments: Tensor) -> Tensor:
    with torch.no_grad():
        return next(iter(_tensors(module.eval()(*arguments))))


def _classes(module: nn.Module, dtype: torch.dtype = torch.long) -> Tensor:
    return _out(module, inputs()).argmax(1).to(dtype)


def _tokens() -> Tensor:
    return torch.randint(0, 20, (16, 5), generator=torch.Generator().manual_seed(5))


def _images() -> Tensor:
    return torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(6))


def _half(dtype: torch.dtype) -> Callable[[], nn.Module]:
    return lambda: perceptron().to(dtype)


def _settled(module: nn.Module) -> nn.Module:
    """With running statistics that are those of the calibration set: a repair sets them so."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.momentum = None
    with torch.no_grad():
        module.train()(inputs())
    return module.eval()


def _compiled() -> nn.Module:
    return torch.compile(perceptron())  # type: ignore[return-value]  # never run, so nothing is compiled


KINDS: dict[str, Kind] = {
    "plain": Kind(perceptron),
    # outputs
    "tuple": Kind(lambda: Wrapped(lambda y, h: (y, h))),
    "hidden first, given by position": Kind(lambda: Wrapped(lambda y, h: (h, y)), options={"predictions": 1}),
    "dict with logits": Kind(lambda: Wrapped(lambda y, h: {"hidden": h, "logits": y})),
    "dict, given by key": Kind(lambda: Wrapped(lambda y, h: {"h": h, "y": y}), options={"predictions": "y"}),
    "dataclass": Kind(lambda: Wrapped(Output)),
    "a function of the output": Kind(
        lambda: Wrapped(lambda y, h: [{"boxes": y}]), options={"predictions": lambda output: output[0]["boxes"]}
    ),
    "no predictions, no guard": Kind(lambda: Wrapped(lambda y, h: {"y": [y, h]}), options={"guard": False}),
    "variational autoencoder": Kind(Autoencoder, groups=2),
    "segmentation": Kind(Segmenter, lambda module: _images(), lambda: (_images(),), options={"task": "segmentation"}),
    # tasks
    "labels": Kind(perceptron, lambda module: [(inputs(), _classes(module))]),
    "32-bit labels": Kind(perceptron, lambda module: [(inputs(), _classes(module, torch.int32))]),
    "8-bit labels, some unknown": Kind(
        perceptron,
        lambda module: [(inputs(), torch.where(inputs()[:, 0] > 0, _classes(module), -1).to(torch.int8))],
    ),
    "one logit": Kind(lambda: perceptron(1), lambda module: [(inputs(), (_out(module, inputs()) > 0).long())]),
    "one probability": Kind(
        lambda: nn.Sequential(perceptron(1), nn.Sigmoid(), nn.Flatten(0)), options={"task": "binary"}
    ),
    "several labels": Kind(perceptron, lambda module: [(inputs(), (_out(module, inputs()) > 0).float())]),
    "two quantities": Kind(lambda: perceptron(2), lambda module: [(inputs(), _out(module, inputs()))]),
    "probabilities": Kind(lambda: nn.Sequential(perceptron(), nn.Softmax(1))),
    "log-probabilities": Kind(lambda: nn.Sequential(perceptron(), nn.LogSoftmax(1))),
    "segmentation with labels": Kind(
        Segmenter, lambda module: [(_images(), _out(module, _images()).argmax(1))], lambda: (_images(),)
    ),
    "sequences with labels": Kind(
        Tagger,
        lambda module: [{"input_ids": _tokens(), "labels": _out(module, _tokens()).argmax(2)}],
        lambda: (_tokens(),),
    ),
    # inputs
    "double precision": Kind(perceptron, lambda module: inputs().double()),
    "NumPy": Kind(perceptron, lambda module: [(inputs().numpy(), _classes(module).numpy())]),
    "named as data sets do": Kind(perceptron, lambda module: [{"img": inputs(), "label": _classes(module)}]),
    "keyword arguments": Kind(
        Tagger,
        lambda module: [{"input_ids": _tokens(), "attention_mask": torch.ones(16, 5)}],
        lambda: (_tokens(), torch.ones(16, 5)),
    ),
    "two inputs": Kind(
        Pair,
        lambda module: [(inputs(), inputs(2), _out(module, inputs(), inputs(2)).argmax(1))],
        lambda: (inputs(), inputs(2)),
    ),
    "DataLoader": Kind(perceptron, lambda module: DataLoader(TensorDataset(inputs(), _classes(module)), batch_size=10)),
    # part of the weights
    "low-rank adapters": Kind(Adapted, send=_part("A", "B", "head")),
    "frozen backbone": Kind(
        lambda: nn.Sequential(
            nn.Linear(FEATURES, 8).requires_grad_(False), nn.ReLU(), nn.Linear(8, 9), perceptron_tail()
        ),
        send=_part("2.", "3."),
    ),
    "norms stay at home": Kind(lambda: _settled(Personal()), send=_part("a.", "b.", "head.")),
    "heads stay at home": Kind(lambda: _settled(Personal()), send=_part("a.", "norm.", "b.")),
    # tensors
    "float16": Kind(_half(torch.float16), tolerance=1e-2),
    "bfloat16": Kind(_half(torch.bfloat16), send=_single, tolerance=1e-2),
    "float64": Kind(_half(torch.float64)),
    "complex and infinite buffers": Kind(Rotary),
    "observers": Kind(Observed),
    # names
    "compiled clients": Kind(perceptron, send=_prefixed("_orig_mod.")),
    "compiled module": Kind(_compiled, send=_prefixed("_orig_mod.")),
    "parallel clients": Kind(perceptron, send=_prefixed("module.")),
    "lists of arrays": Kind(perceptron, send=_numbered),
}


def perceptron_tail() -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Linear(9, CLASSES))


def function(module: nn.Module, arguments: tuple[Any, ...]) -> list[np.ndarray[Any, Any]]:
    """All numbers that a network puts out."""
    torch.manual_seed(0)
    with torch.no_grad():
        output = module.eval()(*(arg.to(dtype_of(module)) if arg.is_floating_point() else arg for arg in arguments))
    return [leaf.double().numpy() for leaf in _tensors(output)]


def dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [leaf for part in output.values() for leaf in _tensors(part)]
    if isinstance(output, list | tuple):
        return [leaf for part in output for leaf in _tensors(part)]
    return [] if output is None else _tensors(vars(output))
