"""Options that several commands share."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
import torch

from c2m3_fl.device import resolve_device
from c2m3_fl.matching import MATCHERS
from c2m3_fl.options import DEFAULTS

NONE = "none"
"""What stands for None on the command line."""

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PLACE = click.Path(exists=True, path_type=Path)
NEW = click.Path(path_type=Path)


def _device(_context: click.Context, _parameter: click.Parameter, value: str) -> torch.device:
    try:
        return resolve_device(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _weights(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(float(each) for each in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not numbers with commas between them, such as 3,1,1") from error


network = click.argument("network", metavar="MODULE:FACTORY")
output = click.option("--output", "-o", type=NEW, required=True, metavar="FILE", help="Where to write the result.")
files = click.argument("files", metavar="A B ...", nargs=-1, required=True, type=FILE)
inputs = click.option(
    "--input", "shapes", multiple=True, metavar="SHAPE[:N]",
    help="Shape of an input, such as 1,3,224,224; 2,16:100 stands for integers below 100. Once for each input.",
)  # fmt: skip
spec = click.option("--spec", "spec_file", type=FILE, help="Permutation groups that `c2m3 explain --output` wrote.")
key = click.option("--key", help="Where the state dict is inside training checkpoints; usual places are found.")
weights = click.option(
    "--weights", callback=_weights, metavar="W,W,...", help="One for each file; default: equal ones."
)
matcher = click.option(
    "--matcher", type=click.Choice(list(MATCHERS)), default="default", show_default=True, help="Who finds permutations."
)
device = click.option(
    "--device", default="auto", show_default=True, callback=_device, help="auto, cpu, cuda or cuda:N."
)
force = click.option("--force", is_flag=True, help="Replace the output if it exists.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
group_size = click.option(
    "--group-size", type=click.IntRange(min=2),
    help="Align at most so many networks at once, and keep no more in memory.",
)  # fmt: skip
activations = click.option(
    "--activations", type=click.FloatRange(min=0), default=DEFAULTS.activations, show_default=True,
    help="Share of activations in the matching, where there are calibration inputs; 0: weights alone.",
)  # fmt: skip
predictions = click.option(
    "--predictions", metavar="KEY", callback=lambda _context, _parameter, key: int(key) if (key or "").isdecimal() else key,
    help="Where in the network's output its predictions are: a name or a number; found in the usual places.",
)  # fmt: skip
_images = (
    click.option(
        "--mean", metavar="M,M,M", help="Per channel, subtracted from inputs (after bytes are scaled to 0..1)."
    ),
    click.option("--std", metavar="S,S,S", help="Per channel, by which inputs are then divided."),
)
_batch_size = click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Of forward passes."
)


def data(name: str, *, examples: int, required: bool, text: str, batched: bool = True) -> Callable[[Command], Command]:
    """The option for data of that name, and those that say how to read them."""

    def decorate(command: Command) -> Command:
        for option in (*([_batch_size] if batched else []), *reversed(_images)):
            command = option(command)
        command = click.option(
            "--examples", type=click.IntRange(min=0), default=examples, show_default=True,
            help="How many to use, drawn by a fixed seed; 0 for all.",
        )(command)  # fmt: skip
        return click.option(name, "data_path", type=PLACE, required=required, metavar="FILE.npz|FOLDER", help=text)(
            command
        )

    return decorate


def choices(function: Callable[..., Any], parameter: str) -> dict[str, Any]:
    """The values that a parameter's annotation lists, by their names on the command line."""
    return {NONE if value is None else str(value): value for value in _literals(get_type_hints(function)[parameter])}


def from_signature(function: Callable[..., Any], parameter: str, text: str) -> Callable[[Command], Command]:
    """The option for a parameter that takes one of several names."""
    values = choices(function, parameter)
    wanted = inspect.signature(function).parameters[parameter].default
    default = next(name for name, value in values.items() if value == wanted)
    return click.option(
        f"--{parameter.replace('_', '-')}", parameter, type=click.Choice(list(values)), default=default,
        show_default=True, help=text, callback=lambda _context, _parameter, value: values[value],
    )  # fmt: skip


def _literals(hint: Any) -> list[Any]:
    if hint is types.NoneType:
        return [None]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return [value for each in get_args(hint) for value in _literals(each)]
    return []
