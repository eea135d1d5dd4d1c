"""What a round costs beside FedAvg: the clients are what they are called, the ratios are those of the measurements."""

import pytest
import torch

from simulations.experiments.round.cost import ROUNDS, Round, measure, networks, tables
from simulations.laboratory.ledger import Record


def test_common_starts_are_near_and_own_starts_far() -> None:
    near, far = (networks(Round("tiny", start, 3, 0)) for start in ("common", "own"))

    def distance(clients: list[dict[str, torch.Tensor]]) -> float:
        first, second = (torch.cat([t.flatten() for t in client.values()]) for client in clients[:2])
        return float((first - second).norm() / first.norm())

    assert distance(near) < 0.1
    assert distance(far) > 1


@pytest.mark.parametrize("scale", ROUNDS)
def test_the_table_holds_ratios(scale: str) -> None:
    values = dict.fromkeys(("measuring", "matching", "repair", "guard"), 0.5)
    values |= {"fedavg": 0.1, "c2m3": 2.0, "forward": 0.25, "moved": 0.0, "memory": 1.25}
    records = [Record(vars(load), values, 1.0, "", {}) for load in ROUNDS[scale]]
    (table,) = tables(records)
    for load, row in zip(ROUNDS[scale], table.rows, strict=True):
        passes = load.clients + (2 if load.start == "common" else 4)
        assert row[4] == "20.0"
        assert row[5] == f"{2.0 / (0.25 * passes):.2f}"
        assert row[-1] == "1.25"


def test_a_round_is_measured() -> None:
    found = measure(Round("tiny", "common", 3, 16))
    assert 0 < found["fedavg"] < found["c2m3"]
    assert found["moved"] == 0
    assert found["memory"] > 0.5
