"""``c2m3 explain``: the permutation groups of a network."""

from __future__ import annotations

from pathlib import Path

import click

from c2m3_fl.cli import options
from c2m3_fl.cli.checkpoints import check_output
from c2m3_fl.cli.errors import InputError
from c2m3_fl.cli.modules import example_input, load_network
from c2m3_fl.cli.progress import Progress
from c2m3_fl.symmetry import PermutationSpec, SpecError

_EPILOG = """
\b
Examples:
  c2m3 explain torchvision.models:resnet18 --input 1,3,224,224
  c2m3 explain model.py:Net --input 1,16:30000 --output spec.json
"""


@click.command(name="explain", epilog=_EPILOG)
@options.network
@options.inputs
@click.option("--no-proof", is_flag=True, help="Trace only.")
@click.option("--output", type=options.NEW, metavar="FILE", help="Write the groups there as JSON, for --spec.")
@options.force
@options.as_json
def explain_command(
    *, network: str, shapes: tuple[str, ...], no_proof: bool, output: Path | None, force: bool, as_json: bool
) -> None:
    """Show the permutation groups of a network: what each moves, and what stays and why.

    The network is traced, and its groups are proved by random permutations.
    """
    if output is not None:
        check_output(output, force=force)
    if not shapes:
        raise InputError("a network is traced with inputs: give --input SHAPE")
    inputs = [example_input(text) for text in shapes]
    module = load_network(network)
    try:
        with Progress().stage("tracing"):
            spec = PermutationSpec.from_module(module, *inputs, prove=not no_proof)
    except SpecError as error:
        raise InputError(str(error)) from error
    if output is not None:
        output.write_text(spec.to_json() + "\n", encoding="utf-8")
    click.echo(spec.to_json() if as_json else spec.explain())
