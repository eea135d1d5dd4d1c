"""The command line: ``c2m3 explain`` shows the permutation groups of a network."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from c2m3_fl.symmetry.spec import PermutationSpec, SpecError


class UsageError(ValueError):
    """An argument that cannot be understood."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        print(_explain(parsed))
    except (UsageError, SpecError) as error:
        print(f"c2m3: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="c2m3", description="Cycle-consistent merging of neural networks.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    explain = commands.add_parser(
        "explain",
        help="show the permutation groups of a network",
        description="Trace a network, prove its permutation groups and show them: what each moves, and what stays and why.",
        epilog="example: c2m3 explain torchvision.models:resnet18 --input 1,3,224,224",
    )
    explain.add_argument(
        "network", metavar="MODULE:FACTORY", help="a callable without arguments that makes the network"
    )
    explain.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="SHAPE[:N]",
        help="shape of an input, such as 1,3,224,224; 2,16:100 stands for integers below 100. Once for each input",
    )
    explain.add_argument("--no-proof", action="store_true", help="trace only")
    explain.add_argument("--json", type=Path, metavar="FILE", help="write the spec there, too")
    return parser


def _explain(arguments: argparse.Namespace) -> str:
    inputs = [example_input(text) for text in arguments.input]
    spec = PermutationSpec.from_module(load_network(arguments.network), *inputs, prove=not arguments.no_proof)
    if arguments.json is not None:
        arguments.json.write_text(spec.to_json() + "\n", encoding="utf-8")
    return spec.explain()


def example_input(text: str) -> Tensor:
    """A random input, from its shape in writing.

    Raises
    ------
    UsageError
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
        raise UsageError(f"--input {text!r} is no shape such as 1,3,224,224 or, for integers, 2,16:100") from error


def load_network(text: str) -> nn.Module:
    """Make the network that ``MODULE:FACTORY`` names; the working directory is searched for the module, too.

    Raises
    ------
    UsageError
        If there is no such factory, it needs arguments or makes something else.
    """
    module, _, factory = text.partition(":")
    if not module or not factory:
        raise UsageError(f"{text!r} names no factory: write MODULE:FACTORY, such as torchvision.models:resnet18")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(f"cannot make a network with {text!r}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, nn.Module):
        raise UsageError(f"{text!r} makes a {type(made).__name__}, not a torch.nn.Module")
    return made


if __name__ == "__main__":
    sys.exit(main())
