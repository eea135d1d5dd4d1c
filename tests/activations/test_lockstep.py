"""Passes in step: as one pass over everything, whatever the network does on its way."""

import threading
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from c2m3_fl.activations import RepairError
from c2m3_fl.activations.calibration import CalibrationSet
from c2m3_fl.activations.lockstep import Call, Lockstep
from c2m3_fl.activations.network import private_network
from c2m3_fl.activations.sites import Site
from c2m3_fl.repair import repair
from tests.repair.networks import average, client, inputs


class Chain(nn.Module):
    """Layers in a row that count how often they run."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            COUNTS["calls"] += len(x)
            x = layer(x)
        return x


COUNTS: Counter[str] = Counter()


@pytest.mark.parametrize("method", ["repair", "least-squares"])
def test_the_work_is_linear_in_depth_whatever_the_batches(method: str) -> None:
    states = [client(lambda: Chain(12), seed) for seed in range(2)]
    work = []
    for batches in (1, 8):
        COUNTS.clear()
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)).chunk(batches)
        repair(lambda: Chain(12), average(states), states, x, method=method, device="cpu")  # type: ignore[arg-type]
        work.append(COUNTS["calls"])
    assert work[0] == 12 * (8 + 3 * 32)  # a probe of eight examples, two clients, the merged network
    assert work[1] <= work[0]


def test_no_thread_outlives_the_repair() -> None:
    before = threading.active_count()
    states = [client(lambda: Chain(3), seed) for seed in range(2)]
    x = torch.randn(32, 4).chunk(8)
    repair(lambda: Chain(3), average(states), states, x, device="cpu")
    assert threading.active_count() == before


class Stochastic(nn.Module):
    """Draws random numbers between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1) + torch.randn(1))
        return torch.as_tensor(self.second(x + torch.randn(1)))


def test_every_pass_draws_the_random_numbers_of_a_pass_alone() -> None:
    states = [client(Stochastic, seed) for seed in range(2)]
    merged = average(states)
    whole = repair(Stochastic, merged, states, inputs(24), device="cpu")
    parts = repair(Stochastic, merged, states, inputs(24).split(8), device="cpu")
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5)


def run(module: nn.Module, batches: list[Tensor], visited: list[tuple[int, str]], fail: str = "") -> list[Tensor]:
    with private_network(module, torch.device("cpu")) as network:
        data = CalibrationSet.read(batches, module).batches
        sites = [Site.of(name, getattr(network.module, name), -1, 1) for name in ("first", "second")]

        def visit(call: Call) -> None:
            visited.append((call.batch, call.site.name))
            if call.site.name == fail and call.batch == 1:
                raise RepairError("as it was told")

        def advance(site: Site) -> None:
            network.layer(site).bias.add_(1)  # type: ignore[operator,union-attr]

        steps = Lockstep(network, sites, data, "the network", visit=visit, advance=advance)
        outputs: list[Tensor] = steps.run(read=lambda output: output)
        return outputs


class Branching(nn.Module):
    """Skips its first layer for batches whose first input is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.first(x) if float(x[0, 0]) > 0 else x))


def test_batches_that_skip_a_layer_are_at_the_next_one_all_the_same() -> None:
    module, visited = Branching(), []
    x = [torch.ones(2, 3), -torch.ones(2, 3), torch.ones(1, 3)]
    outputs = run(module, x, visited)
    assert sorted(visited) == sorted([(0, "first"), (2, "first"), (0, "second"), (1, "second"), (2, "second")])
    with torch.no_grad():
        module.first.bias += 1
        module.second.bias += 1
        for output, batch in zip(outputs, x, strict=True):
            torch.testing.assert_close(output, module(batch))


@pytest.mark.parametrize("fail", ["first", "second"])
def test_an_error_in_one_pass_ends_all(fail: str) -> None:
    before = threading.active_count()
    with pytest.raises(RepairError, match="as it was told"):
        run(Branching(), [torch.ones(2, 3)] * 3, [], fail)
    assert threading.active_count() == before


def test_contexts_of_a_pass_that_waits_are_its_own() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=float(x[0, 0]) > 0):
                x = self.first(x)
            return torch.as_tensor(self.second(x.float()))

    seen: list[tuple[int, str]] = []
    outputs = run(Casting(), [torch.ones(2, 3), -torch.ones(2, 3), torch.ones(2, 3)], seen)
    assert torch.equal(outputs[0], outputs[2])
    assert all(output.dtype == torch.float32 for output in outputs)
    assert not torch.is_autocast_enabled("cpu")
