from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl.symmetry.prove import largest_change
from c2m3_fl.symmetry.spec import PermutationSpec
from tests.symmetry.networks import NETWORKS, Function


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


ORDERED: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(6, 1).values * torch.arange(6, dtype=x.dtype),
    "argmax": lambda x: x + x.argmax(1, keepdim=True),
    "largest and its index": lambda x: x + x.max(1, keepdim=True)[1],
    "index": lambda x: x[:, torch.tensor([1, 0, 2, 3, 4, 5])],
    "gather": lambda x: x.gather(1, torch.tensor([[1, 0, 2, 3, 4, 5]] * 2)),
    "index_select": lambda x: x.index_select(1, torch.tensor([1, 0, 2, 3, 4, 5])),
    "every second": lambda x: x + x[:, ::2].repeat(1, 2),
    "triu": lambda x: (x[:, :, None] * x[:, None]).triu().sum(2),
    "constant": lambda x: x * torch.arange(6, dtype=x.dtype),
    "one hot": lambda x: x + functional.one_hot(x.argmax(1), 6),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, torch.tensor([[1, 0, 2, 3, 4, 5]] * 2), x),
    "assignment": lambda x: x.clone().index_put_((torch.tensor([0]), torch.tensor([2])), x[:1, 0]),
    "kernel": lambda x: functional.conv1d(x[:, None], torch.ones(1, 1, 3, dtype=x.dtype), padding=1)[:, 0],
    "pooling": lambda x: functional.avg_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "reflection": lambda x: functional.pad(x[:, None], (1, 1), mode="reflect")[:, 0, 2:] + x,
    "upsampling": lambda x: functional.interpolate(x[:, None], scale_factor=2)[:, 0, ::2] * x.flip(1),
    "windows": lambda x: x.unfold(1, 2, 1).prod(2).repeat(1, 2)[:, :6],
    "differences": lambda x: functional.pad(x[:, 1:] - x[:, :-1], (0, 1)),
    "random": lambda x: x * torch.rand(6, dtype=x.dtype, generator=None).fill_(0.5).cumsum(0),
}


@pytest.mark.parametrize("name", ORDERED)
def test_a_function_that_depends_on_the_order_pins_it(name: str) -> None:
    function = ORDERED[name]
    net = Function(lambda self, x: self.out(function(self.first(x))), first=nn.Linear(4, 6), out=nn.Linear(6, 3))
    assert not PermutationSpec.from_module(net, torch.randn(2, 4), prove=False).groups


SYMMETRIC: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "normalize": lambda x: functional.normalize(x, dim=1),
    "centre": lambda x: x - x.mean(1, keepdim=True),
    "scale by the largest": lambda x: x / x.amax(1, keepdim=True),
    "standardise": lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
    "add zeros": lambda x: x + torch.zeros(6, dtype=x.dtype),
    "in place": lambda x: functional.relu_(x.mul_(2)),
    "masked": lambda x: x.masked_fill(x > 0, 0.5),
    "clip by norm": lambda x: x * (1 / (x.norm(dim=1, keepdim=True) + 1)).clamp(max=1),
    "where": lambda x: torch.where(x > 1, x, -x),
    "gram": lambda x: (x[:, :, None] * x[:, None]).softmax(2).sum(1),
    "concatenated halves": lambda x: torch.cat(x.chunk(2, 1), 1),
    "stacked": lambda x: torch.stack([x, x.tanh()]).sum(0),
    "transposed twice": lambda x: x.t().mT,
    "dropout": lambda x: functional.dropout(x, training=False),
    "hardswish in place": lambda x: functional.hardswish(x, inplace=True),
    "silu, mish, elu": lambda x: functional.silu(x) + functional.mish(x) + functional.elu(x) + functional.logsigmoid(x),
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_a_function_that_does_not_depend_on_the_order_keeps_it_free(name: str) -> None:
    function = SYMMETRIC[name]
    net = Function(lambda self, x: self.out(function(self.first(x))), first=nn.Linear(4, 6), out=nn.Linear(6, 3))
    spec = PermutationSpec.from_module(net, torch.randn(2, 4), prove=False)
    assert sum(spec.groups.values()) == 6, dict(spec.groups)
    assert largest_change(spec, net, (torch.randn(2, 4),), {}) < 1e-10


def test_group_names_tell_which_module_produces_the_positions() -> None:
    names = {name: set(_traced(name).groups) for name in ("mlp", "gpt", "encoder layer", "lstm", "bidirectional lstm")}
    assert names["mlp"] == {"0.out", "2.out"}
    assert {"tokens", "blocks.0.up", "blocks.0.qkv.heads", "blocks.0.qkv.qk", "blocks.0.qkv.v"} <= names["gpt"]
    assert {"0.out", "1.self_attn.heads", "1.self_attn.qk", "1.self_attn.v", "1.linear1"} == names["encoder layer"]
    assert names["lstm"] == {"embed", "rnn.l0", "rnn.l1"}
    assert names["bidirectional lstm"] == {"embed", "rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"}


def _traced(name: str) -> PermutationSpec:
    network = NETWORKS[name]
    return PermutationSpec.from_module(network.make(), *network.inputs(), prove=False)
