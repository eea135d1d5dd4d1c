"""``c2m3 barrier``: the loss along the line between two checkpoints, before and after alignment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from torch import Tensor

from c2m3_fl import align
from c2m3_fl.analysis import Curve, interpolate, positions
from c2m3_fl.cli import options
from c2m3_fl.cli.checkpoints import check_output
from c2m3_fl.cli.errors import InputError, named
from c2m3_fl.cli.evaluation import Evaluation, Evaluator
from c2m3_fl.cli.job import Job, takes_job
from c2m3_fl.cli.progress import Progress

_EPILOG = """
\b
Examples:
  c2m3 barrier model:Net a.pt b.pt --data test.npz
  c2m3 barrier model:Net a.pt b.pt --data test.npz --points 25 --picture barrier.png

The barrier is the largest rise of the loss above the mean of the two ends.
"""


@dataclass(frozen=True)
class Line:
    """What was measured along one line: a value at each position, accuracies only where targets are classes."""

    positions: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] | None
    barrier: float


@click.command(name="barrier", epilog=_EPILOG)
@options.network
@options.files
@options.data("--data", examples=0, required=True, text="Examples with targets, to measure on.")
@click.option("--points", type=click.IntRange(min=3), default=11, show_default=True, help="Of the line, ends included.")
@click.option(
    "--picture", type=options.NEW, metavar="FILE", help="Draw the lines there (.png, .svg, .pdf; matplotlib)."
)
@options.matcher
@options.inputs
@options.spec
@options.key
@options.device
@options.force
@options.as_json
@takes_job
def barrier_command(*, job: Job, points: int, picture: Path | None, force: bool, as_json: bool) -> None:
    """Measure loss and accuracy along the line between two checkpoints, as they come and aligned."""
    if picture is not None:
        check_output(picture, force=force)
        _check_matplotlib()
    if len(job.files) != 2:
        raise InputError(f"a line has two ends; {len(job.files)} files were given")
    progress = Progress()
    opened = job.open(progress)
    before = list(opened.checkpoints)
    with progress.stage("aligning"), named(job.files):
        after = align(before, opened.spec, matcher=job.matcher, device=job.device).apply(before)
    evaluate = Evaluator(opened.checkpoints.module, opened.data, job.batch_size, job.device)
    lines: dict[str, Line] = {}
    for name, ends in {"before": before, "after": after}.items():
        with progress.stage(f"measuring {name} alignment"):
            lines[name] = _line(evaluate, ends, points, progress)
    if picture is not None:
        _draw(picture, lines, [path.name for path in job.files])
    click.echo(json.dumps({name: asdict(line) for name, line in lines.items()}, indent=2) if as_json else _table(lines))


def _line(evaluate: Evaluator, ends: Sequence[Mapping[str, Tensor]], points: int, progress: Progress) -> Line:
    at, found = positions(points), list[Evaluation]()
    for number, position in enumerate(at):
        progress.note(f"point {number + 1} of {points}")
        found.append(evaluate(interpolate(ends[0], ends[1], position)))
    losses = tuple(each.loss for each in found)
    accuracies = tuple(each.accuracy for each in found if each.accuracy is not None)
    return Line(at, losses, accuracies or None, Curve(at, losses).barrier())


def _table(lines: Mapping[str, Line]) -> str:
    before, after = lines["before"], lines["after"]
    head = f"{'position':>8}  {'loss before':>11}  {'after':>9}"
    rows = [
        f"{position:8.2f}  {one:11.4f}  {two:9.4f}"
        for position, one, two in zip(before.positions, before.loss, after.loss, strict=True)
    ]
    if before.accuracy is not None and after.accuracy is not None:
        head += f"  {'accuracy before':>15}  {'after':>7}"
        accuracies = zip(before.accuracy, after.accuracy, strict=True)
        rows = [f"{row}  {one:15.1%}  {two:7.1%}" for row, (one, two) in zip(rows, accuracies, strict=True)]
    return "\n".join([head, *rows, f"barrier {before.barrier:.4f} before, {after.barrier:.4f} after alignment"])


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401, PLC0415  # only pictures need it
    except ImportError as error:
        raise InputError("--picture needs matplotlib: pip install matplotlib") from error


def _draw(path: Path, lines: Mapping[str, Line], names: Sequence[str]) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415

    accurate = all(line.accuracy is not None for line in lines.values())
    figure = Figure(figsize=(9 if accurate else 5, 3.4), layout="constrained")
    axes = figure.subplots(1, 2 if accurate else 1, squeeze=False)[0]
    for name, line in lines.items():
        axes[0].plot(line.positions, line.loss, marker=".", label=f"{name} alignment")
        if accurate and line.accuracy is not None:
            axes[1].plot(line.positions, [100 * each for each in line.accuracy], marker=".", label=f"{name} alignment")
    for axis, quantity in zip(axes, ("loss", "accuracy (%)"), strict=False):
        axis.set(xlabel=f"from {names[0]} to {names[1]}", ylabel=quantity)
        axis.grid(alpha=0.3)
        axis.legend()
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
