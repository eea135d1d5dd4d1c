"""What a matching asks of torch and of a device, and what it adds to its products and assignments: counts and ratios.

``python -m simulations counts`` prints, on one thread and without data: operations and transfers of one default matching of
ResNet20s of random weights, its CPU-seconds over those of its own products and assignments, and those of the certificate
that the identity is optimal over those of the exact test.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from c2m3_fl.matching import MatchingProblem, UniverseMatcher, default
from c2m3_fl.matching.certificate import certified_groups
from c2m3_fl.matching.identity_first import no_assignment_gains
from c2m3_fl.matching.problem import weighted_sum
from c2m3_fl.symmetry import PermutationSpec
from clients.models import build_model
from simulations.experiments.matching.limit import measured_limit

_CPU = torch.device("cpu")
_DOWN = {"cpu", "tolist", "item", "__float__", "__bool__", "__int__"}
_REPETITIONS = 3


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every operation that torch is asked for, views included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one, and do it."""
        self.count += 1
        return func(*args, **(kwargs or {}))


class Transfers(TorchFunctionMode):
    """Counts the calls that would be transfers from and to a device, if the problem were on one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a transfer, and do it."""
        name, arguments = getattr(func, "__name__", ""), (*args[1:], *(kwargs or {}).values())
        if name in _DOWN or (name == "to" and any(isinstance(each, torch.device) for each in arguments)):
            self.calls["down" if name in _DOWN else "up"] += 1
        return func(*args, **(kwargs or {}))


def resnets(clients: int) -> MatchingProblem:
    """ResNet20s with LayerNorm, of width 1 and random weights."""
    shape, networks = (3, 32, 32), []
    for seed in range(clients):
        torch.manual_seed(seed)
        networks.append(build_model("resnet20", input_shape=shape, num_classes=10, width=1.0, norm="layer"))
    spec = PermutationSpec.from_module(networks[0], torch.zeros(2, *shape), prove=False)
    return MatchingProblem.build([each.state_dict() for each in networks], spec, [1.0] * clients, _CPU)


def perceptrons(clients: int, deviation: float) -> MatchingProblem:
    """Perceptrons 784-256-512-512-256-10 about one of random weights."""
    torch.manual_seed(0)
    network = build_model("mlp:256-512-512-256", input_shape=(1, 28, 28), num_classes=10, width=1.0, norm="layer")
    spec = PermutationSpec.from_module(network, torch.zeros(2, 1, 28, 28), prove=False)
    base = network.state_dict()
    near = [{name: t + deviation * torch.randn_like(t) for name, t in base.items()} for _ in range(clients)]
    return MatchingProblem.build(near, spec, [1.0] * clients, _CPU)


def transfers(problem: MatchingProblem) -> Counter[str]:
    """Those of one default matching that stays on its device, as that of wide networks does."""
    counted = Transfers()
    with patch.object(default, "_SMALL_SIZE", 0), counted:
        UniverseMatcher().match(problem)
    return counted.calls


def operations(problem: MatchingProblem) -> int:
    """Those of one default matching."""
    counted = Operations()
    with counted:
        UniverseMatcher().match(problem)
    return counted.count


def over_limit(problem: MatchingProblem) -> float:
    """CPU-seconds of a default matching over those of its own products and assignments, measured in turn."""
    ratios = []
    for _ in range(_REPETITIONS):
        with measured_limit() as limit:
            UniverseMatcher().match(problem)
        ratios.append(_seconds(lambda: UniverseMatcher().match(problem)) / limit.seconds)
    return statistics.median(ratios)


def certificate(problem: MatchingProblem) -> tuple[float, float, int]:
    """CPU-seconds of the certificate and of the exact test, measured in turn, and the number of certified groups."""
    sums = [weighted_sum(block.data, problem.weights) for block in problem.blocks]
    groups = range(len(problem.group_sizes))
    both = [
        (
            _seconds(lambda: certified_groups(problem, sums)),
            _seconds(lambda: no_assignment_gains(problem, sums, groups)),
        )
        for _ in range(_REPETITIONS)
    ]
    cheap, exact = (statistics.median(times) for times in zip(*both, strict=True))
    return cheap, exact, sum(certified_groups(problem, sums))


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the counts and ratios."""
    parser = argparse.ArgumentParser(prog="python -m simulations counts", description=__doc__)
    parser.add_argument("--clients", type=int, default=5, help="ResNet20s")
    parser.add_argument("--near", type=int, default=20, help="perceptrons about one")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    problem = resnets(options.clients)
    print(f"ResNet20, n = {options.clients}: {operations(problem)} operations of torch")
    calls = transfers(problem)
    print(
        f"  {len(problem.blocks)} transfers to the CPU; {calls['down']} down and {calls['up']} up if it stayed on a device"
    )
    print(f"  {over_limit(problem):.2f} times the CPU-seconds of its own products and assignments")
    cheap, exact, held = certificate(perceptrons(options.near, 0.01))
    print(
        f"perceptron, n = {options.near}: certificate of {held} groups, exact test {exact / cheap:.1f} times its CPU-seconds"
    )


if __name__ == "__main__":
    main()
