"""The permutation spec: axes in writing, application to state dicts, checks, serialisation."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2m3_fl import PermutationSpec, SpecError
from c2m3_fl.symmetry import Axis, Pin, compose, invert
from tests.cases import SPECS, random_clients

spec_names = st.sampled_from(sorted(SPECS))
seeds = st.integers(0, 2**31)


def draw(spec: PermutationSpec, seed: int) -> dict[str, torch.Tensor]:
    return spec.random(torch.Generator().manual_seed(seed))


def test_each_axis_is_index_selected_by_its_group() -> None:
    spec = PermutationSpec.from_axes({"g": 3}, {"w": ("g", 2), "v": (2, "g"), "fixed": (4,)})
    state = {"w": torch.randn(3, 2), "v": torch.randn(2, 3), "fixed": torch.randn(4)}
    order = torch.tensor([2, 0, 1])
    mapped = spec.apply(state, {"g": order})
    assert torch.equal(mapped["w"], state["w"].index_select(0, order))
    assert torch.equal(mapped["v"], state["v"].index_select(1, order))
    assert torch.equal(mapped["fixed"], state["fixed"])


def test_products_and_concatenations_move_as_written() -> None:
    groups = {"c": 2, "d": 3}
    permutations = {"c": torch.tensor([1, 0]), "d": torch.tensor([2, 0, 1])}
    assert Axis.parse("c*2", groups).index(permutations).tolist() == [2, 3, 0, 1]
    assert Axis.parse("2*c", groups).index(permutations).tolist() == [1, 0, 3, 2]
    assert Axis.parse("c*d", groups).index(permutations).tolist() == [5, 3, 4, 2, 0, 1]
    assert Axis.parse("2 + d + c", groups).index(permutations).tolist() == [0, 1, 4, 2, 3, 6, 5]
    assert Axis.parse("c*d", groups).index({"c": permutations["c"]}).tolist() == [3, 4, 5, 0, 1, 2]
    assert Axis.parse(7, groups).index(permutations) is None


@given(name=spec_names, seed=seeds)
def test_maps_compose_and_invert(name: str, seed: int) -> None:
    spec = SPECS[name]
    (state,) = random_clients(spec, 1, seed)
    first, then = draw(spec, seed), draw(spec, seed + 1)
    in_turn = spec.apply(spec.apply(state, first), then)
    at_once = spec.apply(state, compose(first, then))
    back = spec.apply(in_turn, invert(compose(first, then)))
    for key, tensor in state.items():
        assert torch.equal(in_turn[key], at_once[key])
        assert torch.equal(back[key], tensor)


@given(name=spec_names, seed=seeds)
def test_apply_keeps_what_it_is_given(name: str, seed: int) -> None:
    spec = SPECS[name]
    (state,) = random_clients(spec, 1, seed)
    copies = {key: tensor.clone() for key, tensor in state.items()}
    mapped = spec.apply(state, draw(spec, seed))
    assert list(mapped) == list(state)
    for key, tensor in mapped.items():
        assert torch.equal(state[key], copies[key])
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor.flatten().sort().values, state[key].flatten().sort().values)
        tensor.zero_()  # a result must share no memory with the input, moved or not
        assert torch.equal(state[key], copies[key])


@pytest.mark.parametrize("name", SPECS)
def test_json_and_pickle_give_the_spec_back(name: str) -> None:
    spec = SPECS[name]
    assert PermutationSpec.from_json(spec.to_json()) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_pins_survive_json() -> None:
    spec = PermutationSpec.from_axes({"g": 2}, {"w": ("g",)}, pins=[Pin("w[1]", "an unknown operator")])
    assert PermutationSpec.from_json(spec.to_json()).pins == spec.pins


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "lacks"),
        ('{"format": "c2m3-permutation-spec", "version": 99}', "version 99"),
        ('{"format": "c2m3-permutation-spec", "version": 1}', "incomplete"),
    ],
)
def test_other_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        PermutationSpec.from_json(text)


@pytest.mark.parametrize(
    ("groups", "tensors", "message"),
    [
        ({"g": 2}, {"w": ("h",)}, "'h'"),
        ({"g": 2, "h": 3}, {"w": ("g",)}, r"\['h'\] act on no tensor"),
        ({"4": 2}, {"w": ("g",)}, "'g'"),
        ({"a b": 2}, {}, "cannot name a group"),
        ({"g": 0}, {"w": ("g",)}, "size 0"),
    ],
)
def test_malformed_specs_are_errors(groups: dict[str, int], tensors: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        PermutationSpec.from_axes(groups, tensors)


def test_carried_tensors_must_exist() -> None:
    with pytest.raises(SpecError, match="'running_mean'"):
        PermutationSpec.from_axes({"g": 2}, {"w": ("g",)}, carried=["running_mean"])


def test_a_state_dict_that_does_not_fit_is_named() -> None:
    spec = PermutationSpec.from_axes({"g": 2}, {"w": ("g", 3)})
    with pytest.raises(SpecError, match="lacks 'w'"):
        spec.check({})
    with pytest.raises(SpecError, match="'b', which the spec does not list"):
        spec.check({"w": torch.zeros(2, 3), "b": torch.zeros(1)})
    with pytest.raises(SpecError, match=r"'w' has shape \(3, 2\); the spec says \(2, 3\)"):
        spec.check({"w": torch.zeros(3, 2)})


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({"h": torch.arange(3)}, "unknown group 'h'"),
        ({"g": torch.arange(2)}, r"shape \(3,\)"),
        ({"g": torch.arange(3.0)}, "LongTensor"),
        ({"g": torch.tensor([0, 0, 2])}, "not a permutation"),
        ({"g": torch.tensor([1, 2, 3])}, "not a permutation"),
    ],
)
def test_what_is_no_permutation_is_refused(permutations: dict[str, torch.Tensor], message: str) -> None:
    spec = PermutationSpec.from_axes({"g": 3}, {"w": ("g",)})
    with pytest.raises(SpecError, match=message):
        spec.apply({"w": torch.zeros(3)}, permutations)
