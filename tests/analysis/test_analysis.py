"""Analysis against naive formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from c2m3_fl import PermutationSpec
from c2m3_fl.analysis import (
    Plane,
    cosine_similarity,
    curve,
    cycle,
    cycle_error,
    distance,
    interpolate,
    landscape,
    linear_cka,
    loss_barrier,
    positions,
    representation_distance,
)
from c2m3_fl.symmetry import compose, invert

SPEC = PermutationSpec.from_axes(
    groups={"a": 5, "b": 4},
    tensors={"0.weight": ("a", 3), "0.bias": ("a",), "1.weight": ("b", "a"), "2.weight": (2, "b")},
)
SEEDS = st.integers(0, 2**31 - 1)


def network(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn([axis.size for axis in axes], generator=generator) for name, axes in SPEC.tensors.items()}


def flat(state: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in state.values()])


@given(SEEDS, SEEDS)
@settings(max_examples=20, deadline=None)
def test_distances_are_those_of_the_flat_vectors(p: int, q: int) -> None:
    a, b = network(p), network(q)
    assert distance(a, b) == pytest.approx(float((flat(a) - flat(b)).norm()))
    assert cosine_similarity(a, b) == pytest.approx(
        float(torch.nn.functional.cosine_similarity(flat(a), flat(b), dim=0)), abs=1e-9
    )


def test_distance_is_over_the_named_tensors_only() -> None:
    a, b = network(0), network(1)
    assert distance(a, b, ["0.bias"]) == pytest.approx(float((a["0.bias"] - b["0.bias"]).double().norm()))


def test_distance_names_what_does_not_fit() -> None:
    a = network(0)
    with pytest.raises(ValueError, match=r"'0\.bias' has shapes"):
        distance(a, {**a, "0.bias": torch.zeros(6)})
    with pytest.raises(ValueError, match="not in both"):
        distance(a, {}, ["0.bias"])
    with pytest.raises(ValueError, match="no direction"):
        cosine_similarity(a, {name: torch.zeros_like(tensor) for name, tensor in a.items()})


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_a_cycle_through_one_universe_has_no_error_and_an_independent_one_has(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    to_universe = [SPEC.random(generator) for _ in range(3)]
    maps = [compose(a, invert(b)) for a, b in pairwise([*to_universe, to_universe[0]])]
    start = network(seed)
    assert cycle_error(start, maps, SPEC) == 0.0
    moved = [*maps[:2], compose(maps[2], {"a": torch.tensor([1, 0, 2, 3, 4]), "b": torch.arange(4)})]
    expected = float((flat(start) - flat(SPEC.apply(start, cycle(moved)))).norm())
    assert expected > 0
    assert cycle_error(start, moved, SPEC) == pytest.approx(expected)


def test_cycle_applies_maps_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(3)
    maps = [SPEC.random(generator) for _ in range(4)]
    expected = network(0)
    for each in maps:
        expected = SPEC.apply(expected, each)
    found = SPEC.apply(network(0), cycle(maps))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("n", "p", "q"), [(50, 7, 3), (6, 30, 20), (2, 1, 1)])
def test_cka_is_the_formula_with_the_centering_matrix(n: int, p: int, q: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, features, generator=generator) + 2 for features in (p, q))
    h = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        return torch.trace(a.double() @ a.double().T @ h @ b.double() @ b.double().T @ h) / (n - 1) ** 2

    expected = float(hsic(x, y) / torch.sqrt(hsic(x, x) * hsic(y, y)))
    assert linear_cka(x, y) == pytest.approx(expected)


def test_cka_ignores_permutation_scale_and_shift_and_the_distance_does_not() -> None:
    x = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    y = 3 * x[:, torch.arange(8, -1, -1)] - 5
    assert linear_cka(x, y) == pytest.approx(1.0)
    assert representation_distance(x, y) > 1
    assert representation_distance(x, x) == 0.0
    naive = sum(math.dist(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)) / 40
    assert representation_distance(x, y) == pytest.approx(naive, rel=1e-5)


def test_representations_that_cannot_be_compared() -> None:
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match="N >= 2"):
        linear_cka(x, torch.randn(4, 3))
    with pytest.raises(ValueError, match="same for all inputs"):
        linear_cka(x, torch.ones(5, 2))
    with pytest.raises(ValueError, match="equal shapes"):
        representation_distance(x, torch.randn(5, 4))


def test_the_ends_of_a_segment_are_the_networks() -> None:
    a, b = network(0), network(1)
    for position, end in ((0.0, a), (1.0, b)):
        assert all(torch.equal(tensor, end[name]) for name, tensor in interpolate(a, b, position).items())
    middle = interpolate(a, b, 0.25)
    torch.testing.assert_close(flat(middle), 0.75 * flat(a) + 0.25 * flat(b), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        interpolate(a, b, 1.5)


def test_barrier_is_the_rise_above_the_mean_of_the_ends() -> None:
    a, b = network(0), network(1)

    def height(state: Mapping[str, Tensor]) -> float:
        # A tent with its top of 7 in the middle, between ends of 1 and 3.
        at = float((flat(state) - flat(a)).norm() / (flat(b) - flat(a)).norm())
        return 1 + 12 * at if at <= 0.5 else 7 - 8 * (at - 0.5)

    assert loss_barrier(a, b, height, points=11) == pytest.approx(7 - (1 + 3) / 2, abs=1e-5)
    assert loss_barrier(a, b, lambda _: 4.0) == 0.0
    assert curve(a, b, height, (0.0, 0.5, 1.0)).values == pytest.approx((1, 7, 3), abs=1e-5)


def test_positions_of_a_curve() -> None:
    assert positions(5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    with pytest.raises(ValueError, match="too few"):
        positions(1)
    with pytest.raises(ValueError, match="begin with 0"):
        curve(network(0), network(1), lambda _: 0.0, (0.2, 1.0))


def test_the_plane_contains_its_networks_at_their_distances() -> None:
    a, b, c = network(0), network(1), network(2)
    plane = Plane(a, b, c)
    for state, corner in zip((a, b, c), plane.corners, strict=True):
        torch.testing.assert_close(flat(plane.at(*corner)), flat(state), rtol=1e-5, atol=1e-5)
    assert math.dist(plane.corners[1], plane.corners[2]) == pytest.approx(distance(b, c))
    with pytest.raises(ValueError, match="one line"):
        Plane(a, b, interpolate(a, b, 0.5))
    with pytest.raises(ValueError, match="equal"):
        Plane(a, a, b)


def test_the_landscape_measures_the_networks_of_the_plane() -> None:
    a, b, c = network(0), network(1), network(2)
    found = landscape(a, b, c, lambda state: float(flat(state).norm()), points=3, margin=0.0)
    plane = Plane(a, b, c)
    assert found.losses[2][1] == pytest.approx(float(flat(plane.at(found.x[1], found.y[2])).norm()), rel=1e-6)
    assert found.x[0] == min(corner[0] for corner in plane.corners)
    assert found.y[-1] == max(corner[1] for corner in plane.corners)
