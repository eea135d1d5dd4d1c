"""``c2m3 align`` finds permutations and writes them; ``c2m3 apply`` reorders checkpoints by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
from torch import Tensor

import c2m3_fl
from c2m3_fl import PermutationSpec, SpecError, align, align_in_groups
from c2m3_fl.cli import options
from c2m3_fl.cli.checkpoints import check_output, sources, write_checkpoint
from c2m3_fl.cli.errors import InputError, named
from c2m3_fl.cli.job import Job, takes_job
from c2m3_fl.cli.permutations import PermutationFile
from c2m3_fl.cli.progress import Progress
from c2m3_fl.cli.reading import read_tensors
from c2m3_fl.symmetry import compose, invert

_ALIGN_EPILOG = """
\b
Examples:
  c2m3 align model:Net a.safetensors b.safetensors --input 1,784 --output maps.safetensors
  c2m3 apply maps.safetensors b.safetensors --to a.safetensors --output b-like-a.safetensors
"""
_APPLY_EPILOG = """
\b
Examples:
  c2m3 apply maps.safetensors a.pt --output a-universe.pt
  c2m3 apply maps.safetensors b.pt --to a.pt --output b-like-a.pt
"""


@click.command(name="align", epilog=_ALIGN_EPILOG)
@options.network
@options.files
@options.output
@options.weights
@options.matcher
@options.group_size
@options.inputs
@options.spec
@options.key
@options.device
@options.force
@options.as_json
@takes_job
def align_command(*, job: Job, output: Path, force: bool, as_json: bool) -> None:
    """Find the permutations that bring networks into one common order, and write them.

    `c2m3 apply` uses the file. A mapped network computes what it computed before.
    """
    check_output(output, force=force)
    progress = Progress()
    opened = job.open(progress)
    spec, networks = opened.spec, opened.checkpoints
    with progress.stage(f"aligning {len(job.files)} networks"), named(job.files):
        if job.group_size is None:
            found = align(list(networks), spec, weights=job.weights, matcher=job.matcher, device=job.device)
        else:
            found = align_in_groups(
                networks,
                spec,
                group_size=job.group_size,
                weights=job.weights,
                matcher=job.matcher,
                device=job.device,
            )
    about = {
        "made_by": f"c2m3-fl {c2m3_fl.__version__}",
        "matcher": job.matcher,
        "objective": found.objective,
        "objective_before": found.objective_before,
        "moved": found.moved,
    }
    PermutationFile(spec, tuple(sources(job.files)), found.permutations, about).write(output)
    if as_json:
        click.echo(json.dumps({"output": str(output), **about}, indent=2))
        return
    click.echo(f"{output}: permutations of {len(job.files)} networks, {len(spec.groups)} groups")
    click.echo(
        f"  objective {found.objective_before:.6g} as they came, {found.objective:.6g} aligned; "
        f"{found.moved:.0%} of the neurons moved"
    )


@click.command(name="apply", epilog=_APPLY_EPILOG)
@click.argument("maps", metavar="MAPS", type=options.FILE)
@click.argument("file", metavar="A", type=options.FILE)
@options.output
@click.option("--to", metavar="NAME", help="Into the order of this aligned file rather than into the universe.")
@click.option(
    "--as", "name", metavar="NAME", help="Which of the aligned files A stands for, if its content has changed."
)
@options.key
@options.force
@options.as_json
def apply_command(
    *,
    maps: Path,
    file: Path,
    output: Path,
    to: str | None,
    name: str | None,
    key: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Reorder a checkpoint's neurons by the permutations in MAPS, which `c2m3 align` wrote."""
    check_output(output, force=force)
    found = PermutationFile.read(maps)
    order = dict(found.permutations[found.position(file) if name is None else found.called(name)])
    if to is not None:
        order = compose(order, invert(found.permutations[found.called(to)]))
    tensors = read_tensors(file, key)
    try:
        mapped = _present(found.spec, tensors).apply(tensors, order)
    except SpecError as error:
        raise InputError(f"{file}: {error}") from error
    made = {
        "made_by": f"c2m3-fl {c2m3_fl.__version__}",
        "sources": sources([file]),
        "permutations": sources([maps])[0],
        "order": to or "universe",
    }
    write_checkpoint(output, file, mapped, made)
    what = f"{file.name} in the order of {to}" if to is not None else f"{file.name} in the universe"
    click.echo(json.dumps({"output": str(output), **made}, indent=2) if as_json else f"{output}: {what}")


def _present(spec: PermutationSpec, tensors: Mapping[str, Tensor]) -> PermutationSpec:
    """The spec without the second names of tied weights that a file leaves out, as safetensors files do."""
    axes = {name: each for name, each in spec.tensors.items() if name in tensors or name not in spec.carried}
    return PermutationSpec(spec.groups, axes, spec.carried & axes.keys())
