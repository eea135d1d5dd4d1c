"""Why a network cannot be traced: one sentence, the line of the network's code, and the way out."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from c2m3_fl.symmetry.axes import SpecError

_LONGEST = 240
_NOT_THE_USERS = (
    Path(torch.__file__).parent,
    Path(__file__).parent,
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")),
)
_PACKAGES = Path(sysconfig.get_path("purelib"))
_CAUSES = {
    "GuardOnDataDependentSymNode|data-dependent|DataDependentOutput|bool\\(.*\\) of a Tensor|is_nonzero|item\\(\\)": (
        "its control flow depends on the values of tensors"
    ),
    "fake impl|FakeTensor support|meta implementation|UnsupportedOperator|no fake": (
        "it calls an operator that torch.export does not know (it has no fake implementation)"
    ),
    "NumPy|numpy|\\.numpy\\(\\)": "it leaves torch for NumPy",
}


def cannot_run(module: nn.Module, examples: Any, error: BaseException) -> SpecError:
    """The module itself fails on the example inputs, before any tracing."""
    shapes = [
        f"{tuple(leaf.shape)} ({str(leaf.dtype).removeprefix('torch.')})"
        for leaf in tree_leaves(examples)
        if isinstance(leaf, torch.Tensor)
    ]
    inputs = f"of shape {', '.join(shapes)}" if shapes else "that was given"
    return SpecError(
        f"the forward pass of {type(module).__name__} fails on the example input {inputs}: {sentence(error)}"
        f"{_at(error)}. Give inputs of the shapes and types that its forward takes."
    )


def cannot_export(module: nn.Module, error: BaseException) -> SpecError:
    """The module runs, but `torch.export` cannot record it."""
    text = "\n".join(f"{type(e).__name__}: {e}" for e in _chain(error))
    known = next((cause for pattern, cause in _CAUSES.items() if re.search(pattern, text)), None)
    cause = known or f"torch.export fails ({sentence(error)})"
    return SpecError(
        f"{type(module).__name__} cannot be traced: {cause}{_at(error)}. Rewrite that part, or write the spec by hand with "
        "PermutationSpec.from_axes."
    )


def sentence(error: BaseException) -> str:
    """The first useful sentence of an error's message, without graphs and hints."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    first = re.split(r"(?<=[.!?])\s", lines[0])[0].rstrip(".") if lines else "no message"
    if len(first) > _LONGEST:
        first = first[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"{type(error).__name__}: {first}"


def _at(error: BaseException) -> str:
    """The innermost line of the network's own code that led to an error; the user's rather than a library's."""
    frames = [
        frame
        for each in _chain(error)
        for frame in traceback.extract_tb(each.__traceback__)
        if not _inside(frame.filename, _NOT_THE_USERS)
    ]
    own = [frame for frame in frames if not _inside(frame.filename, (_PACKAGES,))]
    if not frames:
        return ""
    innermost = (own or frames)[-1]
    return f", at {innermost.filename}:{innermost.lineno}: `{innermost.line}`"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it, the innermost last."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        current = current.__cause__ or current.__context__
    yield from seen


def _inside(filename: str, folders: tuple[Path, ...]) -> bool:
    path = Path(filename)
    return not path.is_absolute() or any(path.is_relative_to(folder) for folder in folders)
