"""``c2m3 merge``: checkpoint files into one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import c2m3_fl
from c2m3_fl import Aggregation, aggregate
from c2m3_fl.cli import options
from c2m3_fl.cli.checkpoints import check_output, sources, write_checkpoint
from c2m3_fl.cli.data import Data
from c2m3_fl.cli.errors import named
from c2m3_fl.cli.job import Job, takes_job
from c2m3_fl.cli.progress import Progress

_EPILOG = """
\b
Examples:
  c2m3 merge model:Net a.pt b.pt --calibration x.npz --output merged.pt
  c2m3 merge 'torchvision.models:resnet18(num_classes=10)' *.safetensors \\
      --calibration images/ --input 1,3,224,224 --mean 0.485,0.456,0.406 \\
      --std 0.229,0.224,0.225 --output merged.safetensors
  c2m3 merge model.py:Net a.pt b.pt c.pt --weights 3,1,1 --input 1,784 --output m.pt

Without --calibration there is no repair, and the objective alone decides whether the
aligned average is better than the plain one.
"""


@click.command(name="merge", epilog=_EPILOG)
@options.network
@options.files
@options.output
@options.data("--calibration", examples=256, required=False, text="Inputs for repair and choice; labels help.")
@options.weights
@options.matcher
@options.from_signature(aggregate, "repair", "How activations of the average are repaired.")
@options.from_signature(aggregate, "classifier", "What becomes of the last linear layer.")
@options.from_signature(aggregate, "robust", "How far files are trusted.")
@options.from_signature(aggregate, "task", "What the network does, for the choice among candidates; none: found out.")
@options.activations
@options.predictions
@click.option("--guard/--no-guard", default=True, show_default=True, help="Keep the best of plain and aligned average.")
@options.group_size
@options.inputs
@options.spec
@options.key
@options.device
@options.force
@options.as_json
@takes_job
def merge_command(*, job: Job, output: Path, force: bool, as_json: bool, **merging: Any) -> None:
    """Merge checkpoints of one architecture, trained from whatever initialisations.

    MODULE:FACTORY makes the network: a callable of a module or of a .py file, with keyword arguments if it needs some.
    The files are .safetensors, or .pt of torch.save: state dicts, or training checkpoints with one inside. The merged file
    has the format that its suffix names, or the first file's.
    """
    check_output(output, force=force)
    progress = Progress()
    opened = job.open(progress)
    checkpoints = opened.checkpoints
    with progress.stage(f"merging {len(job.files)} networks"), named(job.files):
        merged = aggregate(
            checkpoints.module,
            checkpoints if job.group_size is not None else list(checkpoints),
            weights=job.weights,
            spec=opened.spec,
            matcher=job.matcher,
            calibration=None if opened.data is None else list(opened.data.batches(job.batch_size)),
            group_size=job.group_size,
            device=job.device,
            **merging,
        )
    made = _made(job, merged, opened.data, merging)
    write_checkpoint(output, job.files[0], checkpoints.as_in_files(merged.state_dict), made)
    click.echo(json.dumps({"output": str(output), **made}, indent=2) if as_json else _report(output, made))


def _made(job: Job, merged: Aggregation, data: Data | None, merging: Mapping[str, Any]) -> dict[str, Any]:
    """How a file was made: of what, by what, and what was chosen. Nothing of where or when."""
    shares = job.weights or (1.0,) * len(job.files)
    used = None if job.data_path is None or data is None else {"file": job.data_path.name, "examples": len(data)}
    return {
        "made_by": f"c2m3-fl {c2m3_fl.__version__}",
        "network": job.network,
        "sources": [{**source, "weight": weight} for source, weight in zip(sources(job.files), shares, strict=True)],
        "calibration": used,
        "matcher": job.matcher,
        "group_size": job.group_size,
        **merging,
        "chosen": merged.chosen,
        "scores": dict(merged.scores),
        "excluded": {job.files[position].name: reason for position, reason in merged.excluded.items()},
        "moved": merged.alignment.moved,
        "objective": merged.alignment.objective,
        "objective_before": merged.alignment.objective_before,
    }


def _report(output: Path, made: Mapping[str, Any]) -> str:
    lines = [f"{output}: {len(made['sources']) - len(made['excluded'])} networks merged, {made['chosen']}"]
    lines += [f"  left out: {name}: {reason}" for name, reason in made["excluded"].items()]
    lines.append(
        f"  objective {made['objective_before']:.6g} as they came, {made['objective']:.6g} aligned; "
        f"{made['moved']:.0%} of the neurons moved"
    )
    if made["scores"]:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in made["scores"].items())
        lines.append(f"  loss on {made['calibration']['examples']} calibration examples: {scores}")
    return "\n".join(lines)
