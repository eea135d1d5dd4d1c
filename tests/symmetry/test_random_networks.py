"""The rules on trial: random networks are traced without proof, and random permutations judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from c2m3_fl.symmetry.prove import largest_change, prepare
from c2m3_fl.symmetry.spec import PermutationSpec
from tests.symmetry.networks import Residual
from tests.symmetry.random_networks import image_networks, token_networks

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
_ANY = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def _judge(module: nn.Module, example: Tensor) -> None:
    note(repr(module))
    spec = PermutationSpec.from_module(module, example, prove=False)
    spec.check(module.state_dict())
    generator = torch.Generator().manual_seed(0)
    trial = prepare(module, (example,), {}, generator)
    for run in range(len(trial.runs)):
        assert trial.change(spec, spec.random(generator), run) < 1e-7, dict(spec.groups)


@settings(max_examples=20, **_ANY)
@given(image_networks())
def test_no_wrong_group_in_random_image_networks(case: tuple[nn.Module, Tensor]) -> None:
    _judge(*case)


@settings(max_examples=20, **_ANY)
@given(token_networks())
def test_no_wrong_group_in_random_token_networks(case: tuple[nn.Module, Tensor]) -> None:
    _judge(*case)


@st.composite
def chains(draw: Any) -> tuple[nn.Module, Tensor, list[int]]:
    """A network of known groups: layers one after the other, residual branches, depthwise and attention layers."""
    width = draw(st.integers(2, 9))
    on_tokens = draw(st.booleans())
    layers: list[nn.Module] = [nn.Embedding(7, width) if on_tokens else nn.Conv2d(3, width, 1)]
    sizes = [width]
    for _ in range(draw(st.integers(0, 4))):
        inner = draw(st.integers(2, 9))
        if not on_tokens:
            kind = draw(st.sampled_from(["plain", "residual", "depthwise"]))
            branch = (
                nn.Conv2d(width, inner, 3, padding=1),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
                nn.Conv2d(inner, width, 1),
            )
            choice = {
                "plain": (nn.ReLU(), nn.Conv2d(width, inner, 1, bias=False)),
                "residual": (Residual(*branch),),
                "depthwise": (nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GELU()),
            }
            sizes += [] if kind == "depthwise" else [inner]
        else:
            kind = draw(st.sampled_from(["plain", "residual", "recurrent", "attention"]))
            heads = draw(st.sampled_from([h for h in range(1, width + 1) if width % h == 0]))
            choice = {
                "plain": (nn.GELU(), nn.Linear(width, inner)),
                "residual": (
                    Residual(nn.LayerNorm(width), nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width)),
                ),
                "recurrent": (Outputs(nn.GRU(width, inner, batch_first=True)),),
                "attention": (Outputs(SelfAttention(width, heads)),),
            }
            sizes += [heads, width // heads, width // heads, width] if kind == "attention" else [inner]
        layers += choice[kind]
        width = width if kind in ("residual", "depthwise", "attention") else inner
    layers += [nn.Flatten(), nn.Linear(width * (4 if on_tokens else 16), 3)]
    example = torch.arange(8).reshape(2, 4) % 7 if on_tokens else torch.randn(2, 3, 4, 4)
    return nn.Sequential(*layers), example, sorted(size for size in sizes if size > 1)


class Outputs(nn.Module):
    """The first of a layer's results."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class SelfAttention(nn.MultiheadAttention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x, x, x, need_weights=False)


@settings(max_examples=20, **_ANY)
@given(chains())
def test_random_chains_have_all_the_groups_that_they_should(case: tuple[nn.Module, Tensor, list[int]]) -> None:
    module, example, sizes = case
    note(repr(module))
    spec = PermutationSpec.from_module(module, example, prove=False)
    assert sorted(spec.groups.values()) == sizes
    assert largest_change(spec, module, (example,), {}) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(20))
def test_no_wrong_group_in_ten_thousand_random_networks(shard: int) -> None:
    """Twenty times 500 networks, half of them on images and half on tokens."""

    @seed(shard)
    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(image_networks(), token_networks()))
    def judge(case: tuple[nn.Module, Tensor]) -> None:
        _judge(*case)

    judge()
