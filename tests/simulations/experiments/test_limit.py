"""The yardsticks of the matching benchmark measure what they say."""

from __future__ import annotations

import pytest

from c2m3_fl.matching import CoordinateAscent, FrankWolfe, Matcher, UniverseMatcher
from simulations.experiments.matching.limit import measured_limit
from tests.cases import SPECS, build_problem, random_clients


@pytest.mark.parametrize("matcher", [UniverseMatcher(), FrankWolfe(max_iterations=5), CoordinateAscent()])
def test_the_limit_counts_products_and_assignments_and_changes_nothing(matcher: Matcher) -> None:
    problem = build_problem(SPECS["mlp"], random_clients(SPECS["mlp"], 3))
    expected = matcher.match(problem)
    with measured_limit() as limit:
        found = matcher.match(problem)
    assert found.iterations == expected.iterations
    assert limit.product_calls > 0
    assert 0 < limit.assignment_calls <= 3 * limit.product_calls  # one call may be all clients'
    assert limit.seconds > 0
    before = limit.product_calls
    CoordinateAscent().match(problem)  # outside of the context nothing is measured
    assert limit.product_calls == before
