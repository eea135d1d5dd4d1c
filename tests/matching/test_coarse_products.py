"""Gradients multiplied in bfloat16: faster, and no worse in the end. Emulated where the device has no instructions."""

from __future__ import annotations

import itertools

import pytest
import torch

from c2m3_fl import align
from c2m3_fl.device import coarse_dtype
from c2m3_fl.matching import (
    BlockFrankWolfe,
    CoordinateAscent,
    Matcher,
    MatchingProblem,
    MergeMany,
    UniverseMatcher,
    default,
    problem,
    tier,
    universe,
)
from c2m3_fl.symmetry import PermutationSpec
from tests.cases import SPECS, build_problem, random_clients, related_clients

WIDE = PermutationSpec.from_axes(
    {"a": 150, "b": 130}, {"first.weight": ("a", 20), "second.weight": ("b", "a"), "last.weight": (5, "b")}
)


@pytest.fixture
def coarse_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of any size, on any machine, are multiplied in bfloat16 by those who may, from one start."""
    monkeypatch.setattr(problem, "coarse_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(problem, "_COARSE_SIZE", 1)
    monkeypatch.setattr(default, "_SMALL_SIZE", 0)


def products(matcher: Matcher, case: MatchingProblem, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The types in which a matcher multiplies, in order of first use."""
    multiply, seen = problem.multiply, []

    def spy(left: torch.Tensor, right: torch.Tensor, total: torch.Tensor) -> None:
        seen.append(left.dtype)
        multiply(left, right, total)

    with monkeypatch.context() as patched:
        for module in (tier, universe):
            patched.setattr(module, "multiply", spy)
        matcher.match(case)
    return list(dict.fromkeys(seen))


@pytest.mark.usefixtures("coarse_everywhere")
@pytest.mark.parametrize("clients", [2, 3, 4, 7])
@pytest.mark.parametrize("spec", SPECS)
def test_planted_permutations_are_recovered(spec: str, clients: int) -> None:
    state_dicts = related_clients(SPECS[spec], clients, noise=0.0, seed=clients)
    mapped = align(state_dicts, SPECS[spec]).apply(state_dicts)
    for other in mapped[1:]:
        for name, tensor in mapped[0].items():
            assert torch.equal(tensor, other[name]), name


@pytest.mark.usefixtures("coarse_everywhere")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frank_wolfe_finds_planted_permutations_with_coarse_gradients(dtype: torch.dtype) -> None:
    state_dicts = related_clients(WIDE, 3, noise=0.0)
    case = build_problem(WIDE, [{name: tensor.to(dtype) for name, tensor in each.items()} for each in state_dicts])
    best = 3.0 * 2.0 * sum(float((tensor.double() ** 2).sum()) for tensor in state_dicts[0].values())
    found = BlockFrankWolfe(coarse=True).match(case)
    assert case.objective(found.permutations) == pytest.approx(best, rel=1e-5)


@pytest.mark.usefixtures("coarse_everywhere")
@pytest.mark.parametrize("spec", [*SPECS.values(), WIDE], ids=[*SPECS, "wide"])
def test_coordinate_ascent_climbs_to_where_full_precision_finds_no_move(spec: PermutationSpec) -> None:
    case = build_problem(spec, random_clients(spec, 4))
    matching = CoordinateAscent(coarse=True).match(case)
    objectives = [iteration.objective for iteration in matching.iterations]
    slack = 1e-6 * max(map(abs, objectives))
    assert all(after >= before - slack for before, after in itertools.pairwise(objectives))
    again = CoordinateAscent().improve(case, matching.permutations)
    assert all(torch.equal(a, b) for a, b in zip(again.permutations, matching.permutations, strict=True))


def test_the_default_is_as_good_as_in_full_precision(request: pytest.FixtureRequest) -> None:
    cases = [build_problem(WIDE, related_clients(WIDE, 4, noise=0.5, seed=seed)) for seed in range(4)]
    exact = [case.objective(UniverseMatcher().match(case).permutations) for case in cases]
    request.getfixturevalue("coarse_everywhere")
    coarse = [case.objective(UniverseMatcher().match(case).permutations) for case in cases]
    assert coarse == pytest.approx(exact, rel=3e-3)


@pytest.mark.usefixtures("coarse_everywhere")
def test_the_default_multiplies_coarsely_then_in_full_precision_and_baselines_never_coarsely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = build_problem(WIDE, random_clients(WIDE, 3))
    assert products(BlockFrankWolfe(coarse=True), case, monkeypatch) == [torch.bfloat16]
    assert products(UniverseMatcher(), case, monkeypatch) == [torch.bfloat16, torch.float32]
    for exact in (MergeMany(), CoordinateAscent(), BlockFrankWolfe()):
        assert products(exact, case, monkeypatch) == [torch.float32]


def test_only_large_groups_are_multiplied_coarsely_and_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = build_problem(WIDE, random_clients(WIDE, 2))
    assert case.product_dtypes(coarse=True) == [torch.float32, torch.float32]
    monkeypatch.setattr(problem, "_COARSE_SIZE", 150)
    monkeypatch.setattr(problem, "coarse_dtype", lambda _: torch.bfloat16)
    assert case.product_dtypes(coarse=True) == [torch.bfloat16, torch.float32]
    assert case.product_dtypes(coarse=False) == [torch.float32, torch.float32]
    monkeypatch.setattr(problem, "coarse_dtype", lambda _: None)
    assert case.product_dtypes(coarse=True) == [torch.float32, torch.float32]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx512_f": True}, None)],
)
def test_a_cpu_multiplies_coarsely_if_it_has_instructions_for_it(
    capabilities: dict[str, bool], expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert coarse_dtype(torch.device("cpu")) == expected
    assert coarse_dtype(torch.device("meta")) is None


@pytest.mark.usefixtures("coarse_everywhere")
def test_every_device_recovers_planted_permutations_with_coarse_gradients(device: torch.device) -> None:
    state_dicts = related_clients(WIDE, 4, noise=0.0)
    mapped = align(state_dicts, WIDE, device=device).apply(state_dicts)
    assert all(torch.equal(other[name], tensor) for other in mapped[1:] for name, tensor in mapped[0].items())
