"""The rules on trial: random networks are traced without proof, and random permutations judge."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from c2m3_fl.symmetry.prove import largest_change
from c2m3_fl.symmetry.spec import PermutationSpec
from tests.symmetry.random_networks import image_networks, token_networks

_ANY = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def _judge(module: nn.Module, example: Tensor) -> None:
    note(repr(module))
    spec = PermutationSpec.from_module(module, example, prove=False)
    spec.check(module.state_dict())
    for seed in range(2):
        assert largest_change(spec, module, (example,), {}, seed=seed) < 1e-7, dict(spec.groups)


@settings(max_examples=20, **_ANY)
@given(image_networks())
def test_no_wrong_group_in_random_image_networks(case: tuple[nn.Module, Tensor]) -> None:
    _judge(*case)


@settings(max_examples=20, **_ANY)
@given(token_networks())
def test_no_wrong_group_in_random_token_networks(case: tuple[nn.Module, Tensor]) -> None:
    _judge(*case)


@pytest.mark.slow
@settings(max_examples=1500, **_ANY)
@given(st.one_of(image_networks(), token_networks()))
def test_no_wrong_group_in_many_random_networks(case: tuple[nn.Module, Tensor]) -> None:
    _judge(*case)
