"""The yardsticks of the matching benchmark measure what they say."""

from __future__ import annotations

import pytest

from benchmarks.limit import measured_limit
from benchmarks.pair_sum import frank_wolfe
from c2m3_fl.matching import CoordinateAscent, FrankWolfe, UniverseMatcher
from tests.cases import SPECS, build_problem, pair_sum_objective, random_clients, related_clients


@pytest.mark.parametrize("clients", [2, 3])
def test_pair_sum_takes_the_steps_of_frank_wolfe(clients: int) -> None:
    spec = SPECS["mlp"]
    state_dicts = related_clients(spec, clients, noise=0.3)
    slow = frank_wolfe(state_dicts, spec, max_iterations=4)
    fast = FrankWolfe(max_iterations=4).match(build_problem(spec, state_dicts))
    for ours, iteration in zip(slow.objectives, fast.iterations, strict=True):
        assert 2 * ours == pytest.approx(iteration.objective, rel=1e-2)
    assert 2 * slow.objectives[0] == pytest.approx(pair_sum_objective(spec, state_dicts), rel=1e-5)


def test_pair_sum_refuses_axes_that_it_does_not_know() -> None:
    spec = SPECS["attention"]
    with pytest.raises(ValueError, match="neither fixed nor one whole group"):
        frank_wolfe(random_clients(spec, 2), spec)


def test_the_limit_counts_products_and_assignments_and_changes_nothing() -> None:
    problem = build_problem(SPECS["mlp"], random_clients(SPECS["mlp"], 3))
    expected = UniverseMatcher().match(problem)
    with measured_limit() as limit:
        found = UniverseMatcher().match(problem)
    assert found.iterations == expected.iterations
    assert limit.product_calls > 0
    assert 0 < limit.assignment_calls < limit.product_calls
    assert limit.seconds > 0
    before = limit.product_calls
    CoordinateAscent().match(problem)  # outside of the context nothing is measured
    assert limit.product_calls == before
