"""``c2m3 compare``: how alike checkpoints are, before and after alignment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import click
import torch
from torch import Tensor, nn

from c2m3_fl import PermutationSpec, align
from c2m3_fl.analysis import cosine_similarity, cycle_error, distance, gram_cka, gram_matrices
from c2m3_fl.cli import options
from c2m3_fl.cli.errors import named
from c2m3_fl.cli.job import Job, takes_job
from c2m3_fl.cli.progress import Progress

_EPILOG = """
\b
Examples:
  c2m3 compare model:Net a.pt b.pt c.pt --data x.npz
  c2m3 compare model:Net a.pt b.pt --input 1,784 --json

CKA (with --data) does not depend on the order of neurons: low values mean that the networks
compute different things, which no permutation mends. The cycle error is the distance of the
first network from itself after it is mapped to the second, the third, ... and back.
"""
_PAIRWISE = "git-re-basin"


@click.command(name="compare", epilog=_EPILOG)
@options.network
@options.files
@options.data("--data", examples=256, required=False, batched=False, text="Inputs for CKA.")
@options.matcher
@options.inputs
@options.spec
@options.key
@options.device
@options.as_json
@takes_job
def compare_command(*, job: Job, as_json: bool) -> None:
    """Compare checkpoints: distances and cosines of weights, cycle errors, CKA of representations."""
    progress = Progress()
    opened = job.open(progress)
    spec, count = opened.spec, len(job.files)
    before = list(opened.checkpoints)
    with progress.stage("aligning"), named(job.files):
        alignment = align(before, spec, matcher=job.matcher, device=job.device)
        pairs = _pairs(before, alignment.apply(before), spec)
        through = [alignment.pairwise((p + 1) % count, p) for p in range(count)]
        cycles = {f"through one universe ({job.matcher})": cycle_error(before[0], through, spec)}
        if count > 2:
            direct = [_direct(before, p, spec, job.device) for p in range(count)]
            cycles[f"pair by pair ({_PAIRWISE})"] = cycle_error(before[0], direct, spec)
    result: dict[str, Any] = {"files": [str(path) for path in job.files], "pairs": pairs, "cycle_error": cycles}
    if opened.data is not None:
        with progress.stage("comparing representations"):
            result["cka"] = _cka(opened.checkpoints.module, before, opened.data.inputs, job.device)
    click.echo(json.dumps(result, indent=2) if as_json else _report(result))


def _pairs(
    before: Sequence[Mapping[str, Tensor]], after: Sequence[Mapping[str, Tensor]], spec: PermutationSpec
) -> list[dict[str, Any]]:
    names = [name for name in spec.tensors if name not in spec.carried]
    return [
        {
            "networks": [p, q],
            "distance_before": distance(before[p], before[q], names),
            "distance": distance(after[p], after[q], names),
            "cosine_before": cosine_similarity(before[p], before[q], names),
            "cosine": cosine_similarity(after[p], after[q], names),
        }
        for p, q in combinations(range(len(before)), 2)
    ]


def _direct(
    networks: Sequence[Mapping[str, Tensor]], p: int, spec: PermutationSpec, device: torch.device
) -> dict[str, Tensor]:
    """The map from a network to the next one, found for the two alone."""
    following = networks[(p + 1) % len(networks)]
    return align([networks[p], following], spec, matcher=_PAIRWISE, device=device).pairwise(1, 0)


def _cka(
    module: nn.Module, networks: Sequence[Mapping[str, Tensor]], inputs: Tensor, device: torch.device
) -> dict[str, list[float | None]]:
    """Per layer the CKA of each pair; None where a representation is constant."""
    found = [gram_matrices(module, network, inputs, device) for network in networks]
    return {
        layer: [_similar(found[p][layer], found[q][layer]) for p, q in combinations(range(len(found)), 2)]
        for layer in found[0]
    }


def _similar(x: Tensor, y: Tensor) -> float | None:
    try:
        return gram_cka(x, y)
    except ValueError:
        return None


def _report(result: Mapping[str, Any]) -> str:
    lines = [f"{number}: {name}" for number, name in enumerate(result["files"])]
    lines.append(f"\n{'pair':>7}  {'distance before':>15}  {'after':>9}  {'cosine before':>13}  {'after':>7}")
    for each in result["pairs"]:
        p, q = each["networks"]
        lines.append(
            f"{f'{p}, {q}':>7}  {each['distance_before']:15.4f}  {each['distance']:9.4f}  "
            f"{each['cosine_before']:13.4f}  {each['cosine']:7.4f}"
        )
    lines.append("\ncycle error")
    lines += [f"  {error:9.4f}  {name}" for name, error in result["cycle_error"].items()]
    if "cka" in result:
        lines.append("\nCKA, mean over the pairs")
        for layer, values in result["cka"].items():
            known = [value for value in values if value is not None]
            lines.append(f"  {fmean(known):6.4f}  {layer}" if known else f"  constant  {layer}")
    return "\n".join(lines)
