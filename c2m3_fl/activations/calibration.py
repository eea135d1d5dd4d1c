"""The calibration set: inputs on the server, read once, each batch as the arguments of a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset

from c2m3_fl.activations.errors import RepairError

Calibration = Tensor | np.ndarray | Mapping[str, Any] | Iterable[object]
"""Inputs as one tensor, one batch of named tensors, or an iterable of batches (see `CalibrationSet.read`)."""

TARGET_KEYS = ("labels", "label", "targets", "target", "y", "fine_label", "coarse_label", "class")
"""By what names a batch that is a mapping holds its targets; the first that is there counts."""

INPUT_KEYS = ("img", "image", "images", "pixel_values", "x", "inputs", "input", "data", "features", "input_values")
"""By what names a batch that is a mapping holds the input of a network with a single one."""


@dataclass(frozen=True)
class Batch:
    """Arguments of one forward pass.

    Attributes
    ----------
    args, kwargs
        Positional and keyword arguments; tensors, or structures of tensors.
    size
        Number of examples.
    targets
        What the outputs should be, one for each example along the first axis, if that is known: LongTensor of classes,
        or a floating-point tensor.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0
    targets: Tensor | None = None

    def first(self, examples: int | None) -> Batch:
        """The first examples; all for None. Arguments that are no batches of examples stay whole."""
        if examples is None or examples >= self.size:
            return self

        def cut(leaf: Any) -> Any:
            batched = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == self.size
            return leaf[:examples] if batched else leaf

        return self._mapped(cut, examples)

    def to(self, device: torch.device, dtype: torch.dtype | None) -> Batch:
        """On a device, numbers of floating point in one dtype; None leaves dtypes as they are."""

        def moved(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device, dtype) if leaf.is_floating_point() and dtype is not None else leaf.to(device)

        return Batch(tree_map(moved, self.args), tree_map(moved, dict(self.kwargs)), self.size, self.targets)

    def __str__(self) -> str:
        """Dtypes and shapes, for errors."""
        named = [("", leaf) for leaf in tree_leaves(self.args)]
        named += [(f"{key} ", leaf) for key, value in self.kwargs.items() for leaf in tree_leaves(value)]
        shown = [f"{key}{leaf.dtype}, shape {tuple(leaf.shape)}" for key, leaf in named if isinstance(leaf, Tensor)]
        return "; ".join(shown) or "no tensor"

    def _mapped(self, function: Callable[[Any], Any], size: int) -> Batch:
        targets = None if self.targets is None else self.targets[:size]
        return Batch(tree_map(function, self.args), tree_map(function, dict(self.kwargs)), size, targets)


@dataclass(frozen=True)
class CalibrationSet:
    """The calibration set, read once: every network must see the same inputs, several times over.

    Attributes
    ----------
    batches
        Never empty, each of at least one example.
    """

    batches: tuple[Batch, ...]

    @classmethod
    def read(cls, calibration: Calibration | CalibrationSet, module: nn.Module) -> CalibrationSet:
        """Read inputs, and targets where batches bring them.

        Parameters
        ----------
        calibration
            A tensor or array, one batch of inputs; a mapping of names to tensors, one batch; or an iterable of batches,
            such as a `DataLoader`, of which each is

            - a tensor or array of inputs;
            - a tuple or list ``(inputs, targets, ...)``. A network whose ``forward`` requires several arguments gets that
              many; inputs may be a tuple, list or mapping of arguments themselves;
            - a mapping, as Flower's data sets and Hugging Face's have it: targets are under one of `TARGET_KEYS`; the
              rest are keyword arguments if ``forward`` knows all of them, else the one under one of `INPUT_KEYS` or, if
              there is no other, the single one left is the input.

            Targets may be integers of any type (classes; -100 and -1 stand for none), or of floating point.
        module
            Whose ``forward`` will get the batches.

        Raises
        ------
        RepairError
            Naming the batch that is malformed, empty, or holds values that are not finite.
        """
        if isinstance(calibration, cls):
            return calibration
        if isinstance(calibration, Dataset):
            raise RepairError("the calibration set is a Dataset of single examples; wrap it in a DataLoader")
        if isinstance(calibration, Tensor | np.ndarray | Mapping):
            calibration = [calibration]
        if not isinstance(calibration, Iterable) or isinstance(calibration, str | bytes):
            raise RepairError(
                f"the calibration set is {type(calibration).__name__}, not a tensor or an iterable of batches"
            )
        reader = _Reader.of(module)
        batches = tuple(reader.read(index, batch) for index, batch in enumerate(calibration))
        if not batches:
            raise RepairError("the calibration set is empty")
        known = all(batch.targets is not None for batch in batches)
        if not known:  # part of the targets would weigh part of the examples
            batches = tuple(Batch(each.args, each.kwargs, each.size) for each in batches)
        return cls(batches)

    @property
    def targets(self) -> list[Tensor] | None:
        """Per batch the targets, if they are known."""
        found = [batch.targets for batch in self.batches if batch.targets is not None]
        return found if len(found) == len(self.batches) else None

    def __len__(self) -> int:
        """Number of examples."""
        return sum(batch.size for batch in self.batches)


@dataclass(frozen=True)
class _Reader:
    """What `forward` takes: names of its parameters, None if it takes any, and how many it requires."""

    names: frozenset[str] | None
    required: int

    @classmethod
    def of(cls, module: nn.Module) -> _Reader:
        kinds = inspect.Parameter
        try:
            parameters = inspect.signature(module.forward).parameters.values()
        except (TypeError, ValueError):  # a forward made by foreign code tells nothing
            return cls(None, 1)
        positional = [each for each in parameters if each.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        named = [each.name for each in parameters if each.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
        anything = any(each.kind is kinds.VAR_KEYWORD for each in parameters)
        required = sum(each.default is kinds.empty for each in positional)
        return cls(None if anything else frozenset(named), max(1, required))

    def read(self, index: int, batch: object) -> Batch:
        """One batch of the calibration set."""
        args, kwargs, targets = self._split(index, batch)
        args, kwargs = tree_map(_tensor, args), tree_map(_tensor, kwargs)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not leaves:
            raise RepairError(
                f"calibration batch {index} is {type(batch).__name__}; it must be a tensor of inputs, a tuple that begins "
                "with one, or a mapping of names to tensors"
            )
        if leaves[0].dim() == 0 or len(leaves[0]) == 0:
            raise RepairError(f"calibration batch {index} of shape {tuple(leaves[0].shape)} holds no example")
        if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves if leaf.is_floating_point()):
            raise RepairError(f"calibration batch {index} holds NaN or infinite values")
        return Batch(args, kwargs, len(leaves[0]), _targets(index, targets, len(leaves[0])))

    def _split(self, index: int, batch: object) -> tuple[tuple[Any, ...], dict[str, Any], object]:
        if _is_mapping(batch):
            return self._of_mapping(index, batch)
        if not isinstance(batch, tuple | list) or not batch:
            return (batch,), {}, None
        first = batch[0]
        if _is_mapping(first):
            args, kwargs, targets = self._of_mapping(index, first)
            return args, kwargs, batch[1] if len(batch) > 1 else targets
        if isinstance(first, tuple | list):
            return tuple(first), {}, batch[1] if len(batch) > 1 else None
        if len(batch) >= self.required > 1:
            return tuple(batch[: self.required]), {}, batch[self.required] if len(batch) > self.required else None
        return (first,), {}, batch[1] if len(batch) > 1 else None

    def _of_mapping(self, index: int, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], object]:
        key = next((key for key in TARGET_KEYS if key in batch), None)
        rest = {name: value for name, value in batch.items() if name not in TARGET_KEYS}
        targets = None if key is None else batch[key]
        if rest and self.names is not None and self.names.issuperset(rest):
            return (), rest, targets
        inputs = [name for name in INPUT_KEYS if name in rest] or list(rest)
        if self.names is None and len(rest) > 1:
            return (), rest, targets
        if len(inputs) == 1 or (inputs and inputs[0] in INPUT_KEYS):
            return (rest[inputs[0]],), {}, targets
        raise RepairError(
            f"calibration batch {index} holds {', '.join(map(repr, batch))}, of which none can be told to be the input: "
            f"forward takes {', '.join(sorted(self.names or ())) or 'nothing'}; name the inputs as it does"
        )


def _is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _tensor(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach()
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiubc":
        return torch.from_numpy(np.ascontiguousarray(leaf))
    return leaf


def _targets(index: int, targets: object, size: int) -> Tensor | None:
    """Targets as a tensor: classes as integers of 64 bits."""
    if isinstance(targets, Sequence) and not isinstance(targets, str | bytes) and len(targets) == size:
        targets = np.asarray(targets) if all(isinstance(each, int | float) for each in targets) else None
    found = _tensor(targets)
    if not isinstance(found, Tensor) or found.dim() == 0:
        return None
    if len(found) != size:
        raise RepairError(f"calibration batch {index} holds {size} inputs and {len(found)} targets")
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise RepairError(f"the targets of calibration batch {index} hold NaN or infinite values")
    return found if found.is_floating_point() else found.long()
