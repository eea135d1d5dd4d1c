"""The shared tables of cases: every matcher and every architecture enters them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2m3_fl.matching import MatchingProblem
from c2m3_fl.symmetry import PermutationSpec

SPECS: dict[str, PermutationSpec] = {
    "mlp": PermutationSpec.from_axes(
        groups={"a": 7, "b": 5},
        tensors={
            "in.weight": ("a", 6),
            "in.bias": ("a",),
            "mid.weight": ("b", "a"),
            "mid.bias": ("b",),
            "out.weight": (3, "b"),
            "out.bias": (3,),
        },
    ),
    "convolutions": PermutationSpec.from_axes(
        groups={"stem": 6, "inner": 4},
        tensors={
            "stem.weight": ("stem", 3, 3, 3),
            "up.weight": ("inner", "stem", 3, 3),
            "down.weight": ("stem", "inner", 3, 3),
            "norm.weight": ("stem",),
            "norm.running_var": ("stem",),
            "norm.num_batches_tracked": (),
            "classifier.weight": (4, "stem*9"),
        },
        carried=["norm.running_var", "norm.num_batches_tracked"],
    ),
    "attention": PermutationSpec.from_axes(
        groups={"embedding": 12, "heads": 3, "query": 4, "value": 4},
        tensors={
            "table": (11, "embedding"),
            "qkv.weight": ("heads*query + heads*query + heads*value", "embedding"),
            "out.weight": ("embedding", "heads*value"),
            "head.weight": (2, "embedding"),
        },
    ),
    "recurrent": PermutationSpec.from_axes(
        groups={"hidden": 10},
        tensors={
            "input.weight": ("4*hidden", 3),
            "recurrent.weight": ("4*hidden", "hidden"),
            "square.weight": ("hidden", "hidden"),
            "out.weight": (2, "hidden"),
        },
    ),
    "concatenation": PermutationSpec.from_axes(
        groups={"left": 9, "right": 7, "top": 8},
        tensors={
            "left.weight": ("left", 5),
            "right.weight": ("right", "left"),
            "top.weight": ("top", "left + right + 2"),
            "out.weight": (2, "top"),
        },
    ),
}
"""Permutation specs of every shape that a spec can have: flattened, factorised, concatenated, one group on two axes."""


def random_clients(
    spec: PermutationSpec, clients: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[dict[str, Tensor]]:
    """Clients with independent normal tensors; carried tensors are positive, counters are integers."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(name: str) -> Tensor:
        shape = [axis.size for axis in spec.tensors[name]]
        if name.endswith("num_batches_tracked"):
            return torch.randint(1, 9, shape, generator=generator)
        values = torch.randn(shape, generator=generator, dtype=dtype)
        return values.abs() * 1e3 if name in spec.carried else values

    return [{name: tensor(name) for name in spec.tensors} for _ in range(clients)]


def related_clients(spec: PermutationSpec, clients: int, noise: float = 0.0, seed: int = 0) -> list[dict[str, Tensor]]:
    """Copies of one random client under random permutations, with normal noise of a given standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    (original,) = random_clients(spec, 1, seed + 1)
    copies = []
    for _ in range(clients):
        copy = spec.apply(original, spec.random(generator))
        copies.append(
            {
                name: value + noise * torch.randn(value.shape, generator=generator)
                if name not in spec.carried
                else value
                for name, value in copy.items()
            }
        )
    return copies


def build_problem(
    spec: PermutationSpec, state_dicts: Sequence[dict[str, Tensor]], weights: Sequence[float] | None = None
) -> MatchingProblem:
    """A matching problem on the CPU."""
    return MatchingProblem.build(state_dicts, spec, weights or [1.0] * len(state_dicts), torch.device("cpu"))


def pair_sum_objective(
    spec: PermutationSpec, mapped: Sequence[dict[str, Tensor]], weights: Sequence[float] | None = None
) -> float:
    """Eq. 4 as the paper writes it: a sum over ordered pairs of clients, in float64."""
    w = weights or [1.0] * len(mapped)
    return sum(
        w[p] * w[q] * float((mapped[p][name].double() * mapped[q][name].double()).sum())
        for p in range(len(mapped))
        for q in range(len(mapped))
        if p != q
        for name in spec.tensors
        if name not in spec.carried
    )
