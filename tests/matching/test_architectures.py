"""Copies of one network under random permutations are matched exactly, for every architecture that the clients train."""

from __future__ import annotations

import pytest
import torch

from c2m3_fl.matching import UniverseMatcher
from c2m3_fl.symmetry import PermutationSpec
from clients.models import build_model
from tests.cases import build_problem

NETWORKS = {
    "mlp": ("mlp", (1, 8, 8), 0.125, "layer"),
    "cnn": ("cnn", (1, 8, 8), 0.25, "layer"),
    "resnet20": ("resnet20", (3, 8, 8), 0.5, "layer"),
    "resnet20-batch": ("resnet20", (3, 8, 8), 0.5, "batch"),
    "vgg16": ("vgg16", (3, 32, 32), 0.0625, "layer"),
}


@pytest.mark.slow
@pytest.mark.parametrize("effort", [0, 4])
@pytest.mark.parametrize("network", NETWORKS)
def test_planted_permutations_are_recovered(network: str, effort: int) -> None:
    name, shape, width, norm = NETWORKS[network]
    torch.manual_seed(0)
    module = build_model(name, input_shape=shape, num_classes=10, width=width, norm=norm)  # type: ignore[arg-type]
    spec, original = PermutationSpec.from_module(module, torch.zeros(2, *shape)), module.state_dict()
    for clients in range(2, 13):
        generator = torch.Generator().manual_seed(clients)
        copies = [spec.apply(original, spec.random(generator)) for _ in range(clients)]
        problem = build_problem(spec, copies)
        norm_squared = sum(float(block.data[0].double().square().sum()) for block in problem.blocks)
        optimum = clients * (clients - 1) * norm_squared + problem.constant
        objective = problem.objective(UniverseMatcher(effort).match(problem).permutations)
        assert objective == pytest.approx(optimum, rel=1e-5), clients
