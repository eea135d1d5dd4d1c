from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from c2m3_fl.symmetry import PermutationSpec, plain_module, plain_name


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": torch.compile,
    "data parallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(torch.compile(net)),
    "both, the other way": lambda net: torch.compile(nn.DataParallel(net)),
    "averaged": AveragedModel,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_network_has_the_spec_of_the_plain_one(name: str) -> None:
    net = _mlp()
    wrapped = WRAPPERS[name](net)
    spec = PermutationSpec.from_module(wrapped, torch.randn(2, 4))
    assert spec == PermutationSpec.from_module(net, torch.randn(2, 4))
    assert spec.groups == {"0.out": 6, "2.out": 5}
    names = [name for name in wrapped.state_dict() if name != "n_averaged"]
    assert [plain_name(name) for name in names] == list(net.state_dict())
    assert all(plain_name(name) != name for name in names)
    if name != "averaged":  # which copies
        assert plain_module(wrapped) is net


def test_what_is_not_wrapped_stays() -> None:
    net = _mlp()
    assert plain_module(net) is net
    assert [plain_name(name) for name in net.state_dict()] == list(net.state_dict())
    assert plain_name("module") == "module"
    assert plain_name("encoder.module.weight") == "encoder.module.weight"


def test_a_compiled_part_keeps_its_names() -> None:
    net = nn.Sequential(torch.compile(_mlp()), nn.ReLU(), nn.Linear(3, 2))
    spec = PermutationSpec.from_module(net, torch.randn(2, 4))
    spec.check(net.state_dict())
    assert sorted(spec.groups.values()) == [3, 5, 6]
    assert plain_name("0._orig_mod.2.weight") == "0.2.weight"


def test_a_network_compiled_in_place_is_traced_as_written() -> None:
    net = _mlp()
    net.compile()
    assert PermutationSpec.from_module(net, torch.randn(2, 4)).groups == {"0.out": 6, "2.out": 5}


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "older weight_norm": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "older spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", NORMS)
def test_reparametrised_weights_move_with_what_they_are_made_of(name: str) -> None:
    norm = NORMS[name]
    torch.manual_seed(0)
    net = nn.Sequential(
        *(norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), norm(nn.ConvTranspose2d(6, 5, 3)), nn.ReLU(), nn.AvgPool2d(8)),
        *(nn.Flatten(), norm(nn.Linear(5, 3))),
    )
    before = {key: value.clone() for key, value in net.state_dict().items()}
    spec = PermutationSpec.from_module(net, torch.randn(2, 3, 8, 8))
    assert sorted(spec.groups.values()) == [5, 6]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    x = torch.randn(2, 3, 8, 8)
    net.eval()
    expected = net(x)
    net.load_state_dict(spec.apply(net.state_dict(), spec.random(torch.Generator().manual_seed(0))))
    torch.testing.assert_close(net(x), expected)
