"""What a round costs the server: measured in processes of their own, shown in a table and a plot."""

import pytest

from simulations.experiments.round.scale import SCALES, Load, measure, pictures, tables
from simulations.laboratory.ledger import Record


def record_of(load: Load) -> Record:
    size = 10 * load.width**2
    values = {
        "server_seconds": 0.1 * load.clients,
        "before": 100.0,
        "peak": 100 + 3 * size * load.clients,
        "network": size,
    }
    return Record(vars(load), values, 1.0, "", {})


@pytest.mark.parametrize("scale", SCALES)
def test_the_table_says_how_many_networks_each_client_costs(scale: str) -> None:
    records = [record_of(load) for load in SCALES[scale]]
    (table,) = tables(records)
    assert len(table.rows) == len(records)
    large = [row for row in table.rows if row[2:4] == ("10", "10.00")]
    assert all(row[-1] == "3.0" for row in large)
    assert [picture.name for picture in pictures(records)] == ["scale"]


@pytest.mark.slow
def test_a_round_is_measured() -> None:
    few, many = (measure(Load("c2m3", "per-client", clients, 0.25)) for clients in (2, 40))
    assert few.network == many.network
    assert 0 < few.server_seconds < many.server_seconds
    assert many.peak - many.before > 40 * many.network


@pytest.mark.slow
def test_a_measurement_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="nonsense"):
        measure(Load("nonsense", "shared", 2, 0.1))
