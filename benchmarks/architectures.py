"""Permutation groups of well-known networks, found by tracing: makes ``docs/architectures.md``.

Run ``python -m benchmarks.architectures``; names of networks as arguments limit it to those and print their rows only.
With ``--rows FILE``, rows that the file holds are not measured again, so that a run can be gone on with.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo import ARCHITECTURES
from c2m3_fl.activations.calibration import CalibrationSet
from c2m3_fl.activations.network import private_network
from c2m3_fl.repair import repair
from c2m3_fl.symmetry import PermutationSpec, moved_share
from c2m3_fl.symmetry.prove import prepare

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
_PACKAGES = ("torch", "torchvision", "transformers", "timm", "peft")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name, family
        Which network, and what it stands for.
    parameters
        Number of parameters, those that are sent.
    groups
        Number of permutation groups.
    share
        Share of the parameters that lie in a tensor that some group moves.
    change
        Largest change of an output under planted permutations of all groups, relative to the largest output.
    repair
        Layers that repair corrects, or why it takes none.
    seconds
        CPU time to trace and prove.
    still
        Parameters that nothing moves.
    """

    name: str
    family: str
    parameters: int
    groups: int
    share: float
    change: float
    repair: str
    seconds: float
    still: tuple[str, ...]


def measure(name: str, *, small: bool = False) -> Row:
    """Trace one network of the table, prove its groups, permute them all at once, and repair an average."""
    architecture = ARCHITECTURES[name]
    network, args, kwargs = architecture.build(small=small)
    started = time.process_time()
    whole = PermutationSpec.from_module(network, *args, kwargs=kwargs)
    seconds = time.process_time() - started
    sent = architecture.sent
    spec = whole if sent is None else whole.restricted([tensor for tensor in whole.tensors if sent(tensor)])
    parameters = sum(p.numel() for key, p in network.named_parameters() if key in spec.tensors)
    moved = {*spec.moved_tensors(), *spec.carried}
    still = tuple(tensor for tensor in spec.tensors if tensor not in moved)
    change = planted_change(whole, spec, network, args, kwargs)
    repaired = "-" if sent is not None else sites_of(*architecture.build(small=True))
    share = moved_share(spec)
    return Row(name, architecture.family, parameters, len(spec.groups), share, change, repaired, seconds, still)


def planted_change(
    whole: PermutationSpec,
    spec: PermutationSpec,
    network: nn.Module,
    args: Sequence[Tensor],
    kwargs: Mapping[str, Tensor],
) -> float:
    """Largest relative change of an output when the sent tensors are permuted and all others are the network's own."""
    generator = torch.Generator().manual_seed(1)
    trial = prepare(network, args, kwargs, generator)
    planted = spec.random(generator)
    # Groups of the restricted spec are groups of the whole one, and order nothing that is not sent.
    return max(trial.change(whole, planted, run) for run in range(len(trial.runs)))


def sites_of(network: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> str:
    """Number of layers that repair corrects in an average of two networks, or the sentence with which it refuses."""
    batch: Any = dict(kwargs) if kwargs else args[0]
    first = network.state_dict()
    second = {
        key: value * (1 + 0.2 * torch.rand(value.shape)) if value.is_floating_point() else value
        for key, value in first.items()
    }
    merged = {key: (value + second[key]) / 2 if value.is_floating_point() else value for key, value in first.items()}
    try:
        with private_network(network, torch.device("cpu")) as own:
            sites = own.sites(CalibrationSet.read([batch], own.module).batches[0])
        repaired = repair(network, merged, [first, second], [batch], device="cpu")
    except Exception as error:
        return str(error).split(". ")[0].splitlines()[0][:80]
    changed = sum(not torch.equal(repaired[key], merged[key]) for key in merged)
    return f"{len(sites)} layers" if changed else "no layer"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | family | parameters | groups | share moved | largest change | repair | seconds | stays |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        more = f" and {len(row.still) - 3} more" if len(row.still) > 3 else ""
        still = ", ".join(f"`{name}`" for name in row.still[:3]) + more
        lines.append(
            f"| {row.name} | {row.family} | {row.parameters:,} | {row.groups} | {row.share:.2%} | {row.change:.0e} "
            f"| {row.repair} | {row.seconds:.1f} | {still or 'nothing'} |"
        )
    return "\n".join(lines)


_TEXT = """# Architectures

<!-- Made by `python -m benchmarks.architectures`; tests compare it with what tracing finds. -->

Permutation groups that `PermutationSpec.from_module` finds in {number} networks at random weights: torchvision's, Hugging
Face's and timm's, built from their configurations without any download, and some written in `benchmarks/zoo/written.py`.
Hugging Face's are small, the others as large as they are used.

- **groups**: number of groups, each permuted independently of the others.
- **share moved**: share of the parameters, counted by element, in a tensor that some group moves, rounded.
- **largest change**: of any output under planted permutations of all groups at once, relative to the largest output, in
  double precision (single where a network runs in no other), with all parameters and running statistics made generic.
- **repair**: layers that REPAIR corrects in the average of two such networks (of the small version, where there is one).
- **seconds**: CPU time to trace and to prove, on one thread.
- **stays**: parameters that no group moves. The output layer's bias has the order of the classes.

{table}

What moves less than it could:

- *ShuffleNet v2*: each unit interleaves two halves and splits the result at its middle, so positions of the stream
  are tied to one another again and again. What stays in the later units of a stage are the norms behind the last
  convolution of a branch; the convolutions themselves move by the groups inside of the branch.
- *Attention*: the order of the dimensions inside a head is one group shared by all heads of a layer. Separate orders for
  each head are a symmetry as well, but do not combine with a permutation of the heads in a spec's axes.
- *Grouped convolutions* (ResNeXt, RegNet): likewise, channels inside of a group are permuted alike in all groups.
- *Mixtures of experts*: experts keep their places, since a router picks them by number; where their weights are stacked in
  one tensor, the hidden units of all experts are permuted alike.
- *Outputs that are not predictions*: what a network returns keeps its order. Mean and variance of a variational
  autoencoder are such outputs.
- *Adapters*: the row of LoRA holds the adapters alone, the part that clients send; only their rank axes are free of the
  frozen weights.
- *Continuous symmetries* (rotations between q and k, scales between layers) are no permutations and not listed.

## Random networks

Random networks out of 53 kinds of steps (`tests/symmetry/random_networks.py`, `random_operations.py`) are traced without
proof, then all their groups are permuted at once: no output may change.
`python -m pytest -m slow -k ten_thousand tests/symmetry/test_random_networks.py` draws 10,000 of them, in twenty
parts of 500; a few run in every test. Measured so far: the first three parts, 1,500 networks, no wrong group (2-core CPU).

Made with {versions}, {machine}.
"""


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    versions = ", ".join([*filter(None, map(_version, _PACKAGES)), f"Python {platform.python_version()}"])
    machine = f"{platform.system()} {platform.machine()}"
    return _TEXT.format(number=len(rows), table=table(rows), versions=versions, machine=machine)


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def _known(file: Path | None) -> dict[str, Row]:
    if file is None or not file.exists():
        return {}
    entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {entry["name"]: Row(**{**entry, "still": tuple(entry["still"])}) for entry in entries}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show progress, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"some of: {', '.join(ARCHITECTURES)}")
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="file of rows measured so far, which this run adds to"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known = _known(given.rows)
    rows = []
    for name in given.networks or ARCHITECTURES:
        row = known.get(name) or measure(name)
        if given.rows is not None and name not in known:
            with given.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        rows.append(row)
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    if given.networks:
        print(table(rows))
    else:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
