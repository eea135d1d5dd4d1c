from __future__ import annotations

import pytest
import torch

from c2m3_fl.symmetry.prove import largest_change
from c2m3_fl.symmetry.spec import PermutationSpec
from tests.symmetry.networks import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_all_found_and_leave_the_function_as_it_is(name: str) -> None:
    network = NETWORKS[name]
    torch.manual_seed(0)
    module, inputs = network.make(), network.inputs()
    spec = PermutationSpec.from_module(module, *inputs, prove=False)
    spec.check(module.state_dict())
    assert tuple(sorted(spec.groups.values())) == network.sizes
    for seed in range(3):
        assert largest_change(spec, module, inputs, {}, seed=seed) < 1e-10
