"""A round's clients as one value: what is refused, the order, what all hold alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2m3_fl.errors import ClientError, StructureError
from c2m3_fl.layout import examine, layout_of
from c2m3_fl.round import Clients


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(5, 4, generator=generator),
        "bias": torch.randn(5, generator=generator).half(),
        "counter": torch.tensor(7),
        "flag": torch.tensor(True),
        "phase": torch.randn(3, 2, generator=generator).double().view(3, 2).contiguous(),
        "rotation": torch.view_as_complex(torch.randn(3, 2, generator=generator)),
        "mask": torch.full((2, 2), -math.inf).triu(1),
    }


LAYOUT = layout_of(state())


def test_what_fits_is_taken_as_it_is() -> None:
    own = state()
    assert examine(own, LAYOUT).state_dict is own
    backwards = dict(reversed(own.items()))
    assert list(examine(backwards, LAYOUT).state_dict) == list(own)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("weight", torch.zeros(4, 5), r"shape \(4, 5\), not \(5, 4\)"),
        ("weight", torch.zeros(1), r"shape \(1,\)"),
        ("weight", torch.zeros(5, 4, dtype=torch.long), "torch.int64, not torch.float32"),
        ("counter", torch.tensor(7.0), "torch.float32, not torch.int64"),
        ("flag", torch.tensor(1), "torch.int64, not torch.bool"),
        ("rotation", torch.zeros(3), "torch.float32, not torch.complex64"),
        ("weight", "a", "of type str"),
    ],
)
def test_tensors_of_another_form_are_structural_faults(name: str, value: object, words: str) -> None:
    with pytest.raises(StructureError, match=words):
        examine(state() | {name: value}, LAYOUT)


@pytest.mark.parametrize("name", ["weight", "bias", "phase", "rotation"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite_is_found(name: str, value: float) -> None:
    own = state()
    own[name] = own[name].clone()
    own[name].view(-1)[-1] = value
    with pytest.raises(ClientError, match=f"{name!r} has entries that are NaN or infinite") as raised:
        examine(own, LAYOUT)
    assert not isinstance(raised.value, StructureError)


def test_infinities_that_cancel_in_the_sum_are_found() -> None:
    own = state()
    own["weight"][0, 0], own["weight"][0, 1] = math.inf, -math.inf
    with pytest.raises(ClientError, match="NaN or infinite"):
        examine(own, LAYOUT)


def test_finite_numbers_whose_sum_overflows_are_finite() -> None:
    own = state() | {"phase": torch.full((3, 2), 1e308, dtype=torch.float64)}
    examine(own, LAYOUT)


def test_a_mask_may_be_infinite_where_the_models_is() -> None:
    examine(state() | {"mask": torch.zeros(2, 2)}, LAYOUT)
    with pytest.raises(ClientError, match="'mask'"):
        examine(state() | {"mask": torch.full((2, 2), -math.inf)}, LAYOUT)
    with pytest.raises(ClientError, match="'mask'"):
        examine(state() | {"mask": -state()["mask"]}, LAYOUT)


def test_floats_and_integers_of_other_sizes_are_converted() -> None:
    other = state()
    other |= {"weight": other["weight"].double(), "counter": torch.tensor(7, dtype=torch.int16)}
    found = examine(other, LAYOUT).state_dict
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: e.dtype for name, e in LAYOUT.items()}
    assert torch.equal(found["weight"], state()["weight"])


def test_arrays_are_taken_too() -> None:
    arrays = {name: tensor.numpy() for name, tensor in state().items()}
    clients = Clients.of([arrays, state(1)])
    assert all(torch.equal(clients.state_dicts[clients.positions.index(0)][n], t) for n, t in state().items())


@given(st.permutations(range(5)))
def test_the_order_depends_on_content_and_not_on_arrival(order: list[int]) -> None:
    own = [state(seed) for seed in range(4)] + [state(2)]
    weights = [3.0, 1.0, 2.0, 5.0, 2.0]
    first = Clients.of(own, weights)
    again = Clients.of([own[i] for i in order], [weights[i] for i in order])
    assert again.weights == first.weights
    for a, b in zip(first.state_dicts, again.state_dicts, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in LAYOUT)
    assert sorted(again.positions) == list(range(5))


def test_clients_whose_sums_tie_are_told_apart_by_their_bytes() -> None:
    base = torch.arange(6.0)
    permuted = [{"w": base[list(order)]} for order in itertools.islice(itertools.permutations(range(6)), 20)]
    first = [client["w"].tolist() for client in Clients.of(permuted).state_dicts]
    assert first == [client["w"].tolist() for client in Clients.of(permuted[::-1]).state_dicts]


def test_weights_of_any_size_are_shares() -> None:
    own = [state(0), state(1)]
    for weights in ([1e308, 1e308], [5e-324, 5e-324], [3, 3]):
        assert Clients.of(own, weights).weights == (1.0, 1.0)
    assert sorted(Clients.of(own, [1, 4]).weights) == [0.25, 1.0]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1], "1 weights were given for 2 clients"),
        ([1, -1], "client 1 has weight -1"),
        ([math.nan, 1], "client 0 has weight nan"),
        ([0, 0], "all clients have weight zero"),
    ],
)
def test_unusable_weights_are_named(weights: list[float], words: str) -> None:
    with pytest.raises(ClientError, match=words):
        Clients.of([state(0), state(1)], weights)
    with pytest.raises(ClientError, match="no clients"):
        Clients.of([])


def test_what_all_hold_alike_is_known() -> None:
    assert Clients.of([state(0), state(1)]).alike == {"counter", "flag", "mask"}
    assert Clients.of([state(0), state(0)]).alike == set(LAYOUT)
    zeros = [{"w": torch.zeros(2)}, {"w": torch.tensor([1.0, -1.0])}]
    assert Clients.of(zeros).alike == set()


def test_without_a_model_only_what_is_infinite_in_every_client_may_be() -> None:
    Clients.of([state(0), state(1)])
    with pytest.raises(ClientError, match=r"client 1 .*'mask'"):
        Clients.of([state(0), state(1) | {"mask": torch.zeros(2, 2)}])
    with pytest.raises(ClientError, match=r"client 0 .*'weight'"):
        Clients.of([state(0) | {"weight": torch.full((5, 4), math.nan)}] * 2)


def test_clients_read_on_demand_are_converted_each_time() -> None:
    class Lazy(Sequence):  # type: ignore[type-arg]
        reads = 0

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            Lazy.reads += 1
            return {name: np.asarray(tensor.numpy()) for name, tensor in state(index).items()}

    clients = Clients.of(Lazy())
    assert Lazy.reads >= 3
    picked = clients.subset([2, 0])
    assert isinstance(picked.state_dicts[0]["weight"], Tensor)
    assert picked.positions == (clients.positions[2], clients.positions[0])
    assert torch.equal(picked.state_dicts[1]["weight"], state(clients.positions[0])["weight"])
