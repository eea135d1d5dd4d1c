"""Random rounds over faults and options (see `tests.federation.fuzz`)."""

from __future__ import annotations

import random

import pytest

from tests.federation.faults import honest_replies, identify, strategy
from tests.federation.fuzz import play


@pytest.mark.parametrize("seed", range(4))
def test_random_rounds_keep_the_rule(seed: int) -> None:
    identify()
    draw = random.Random(1000 + seed)
    assert not [fault for _ in range(15) if (fault := play(draw)) is not None]


def test_robust_without_a_guard_is_possible() -> None:
    identify()
    arrays, _ = strategy(robust="exclude", guard=False, repair="repair").aggregate_train(1, honest_replies())
    assert arrays is not None
