"""The network that a command works on, and inputs to trace it with."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from c2m3_fl.cli.errors import InputError
from c2m3_fl.symmetry import PermutationSpec, SpecError


def load_network(text: str) -> nn.Module:
    """Make the network that ``MODULE:FACTORY`` names.

    MODULE is a module's name, looked for in the working directory too, or the path of a ``.py`` file. FACTORY is a
    callable of it, followed or not by keyword arguments in parentheses whose values are literals.

    Raises
    ------
    InputError
        If there is no such factory, it fails, or makes something else.
    """
    place, _, call = text.partition(":")
    if not place or not call:
        raise InputError(f"{text!r} names no factory: write MODULE:FACTORY, such as torchvision.models:resnet18")
    name, arguments = _call(text, call)
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(_module(place), name)(**arguments)
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"cannot make a network with {text!r}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, nn.Module):
        raise InputError(f"{text!r} makes a {type(made).__name__}, not a torch.nn.Module")
    return made


def _call(text: str, call: str) -> tuple[str, dict[str, Any]]:
    if call.isidentifier():
        return call, {}
    try:
        parsed = ast.parse(call, mode="eval").body
        if not isinstance(parsed, ast.Call) or not isinstance(parsed.func, ast.Name) or parsed.args:
            raise ValueError("it is no call with keyword arguments")
        return parsed.func.id, {str(each.arg): ast.literal_eval(each.value) for each in parsed.keywords}
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"{text!r} names no factory: write MODULE:FACTORY or 'MODULE:FACTORY(name=value)' with plain values ({error})"
        ) from error


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    found = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert found is not None  # it is None for unknown suffixes alone
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules.setdefault(found.name, module)  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


def example_input(text: str) -> Tensor:
    """A random input, from its shape in writing: ``1,3,224,224``, or ``2,16:100`` for integers below 100.

    Raises
    ------
    InputError
        If the text is no shape.
    """
    shape, _, below = text.partition(":")
    generator = torch.Generator().manual_seed(0)
    try:
        sizes = [int(size) for size in shape.split(",")]
        if min(sizes) < 1:
            raise ValueError("sizes are positive")
        if below:
            return torch.randint(int(below), sizes, generator=generator)
        return torch.randn(sizes, generator=generator)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--input {text!r} is no shape such as 1,3,224,224 or, for integers, 2,16:100") from error


def find_spec(
    module: nn.Module, spec_file: Path | None, shapes: Sequence[str], inputs: Tensor | None
) -> PermutationSpec:
    """The permutation groups: read from a file, or traced with inputs of the given shapes or the first data there are.

    Raises
    ------
    InputError
        If there is nothing to trace with, or the network cannot be traced.
    """
    try:
        if spec_file is not None:
            return PermutationSpec.from_json(spec_file.read_text(encoding="utf-8"))
        examples = [_like(module, example_input(shape)) for shape in shapes]
        if not examples:
            if inputs is None:
                raise InputError("the network's input is unknown: give --input SHAPE, data, or --spec FILE")
            examples = [inputs[:2]]
        return PermutationSpec.from_module(module, *examples)
    except (SpecError, UnicodeDecodeError) as error:
        raise InputError(f"{spec_file}: {error}" if spec_file is not None else str(error)) from error


def check_forward(module: nn.Module, inputs: Tensor, source: Path) -> None:
    """Try the network on some inputs.

    Raises
    ------
    InputError
        Naming the inputs' source, if it fails.
    """
    try:
        with torch.inference_mode():
            module(inputs)
    except Exception as error:  # whatever the user's code raises
        raise InputError(
            f"{source}: the network fails on its inputs of shape (N, {', '.join(map(str, inputs.shape[1:]))}), "
            f"{inputs.dtype}: {error}"
        ) from error


def _like(module: nn.Module, example: Tensor) -> Tensor:
    return example.to(floating_dtype(module)) if example.is_floating_point() else example


def floating_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a network's floating-point parameters; float32 where it has none."""
    return next((each.dtype for each in module.parameters() if each.is_floating_point()), torch.float32)
