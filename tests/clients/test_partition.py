"""Partitions: disjoint, repeatable, and of the kind that was asked for."""

import pytest
import torch

from clients.data import DataError
from clients.partition import hold_out, partition_indices
from clients.settings import PARTITIONS, ClientSettings

CLIENTS = 5
LABELS = torch.randint(0, 10, (1000,), generator=torch.Generator().manual_seed(0))


def parts(settings: ClientSettings) -> list[torch.Tensor]:
    return [partition_indices(LABELS, settings, CLIENTS, i) for i in range(CLIENTS)]


@pytest.mark.parametrize("kind", PARTITIONS)
def test_parts_are_disjoint_and_repeatable(kind: str) -> None:
    settings = ClientSettings(partition=kind)
    # A pathological partition may leave a class to nobody, and says so.
    with pytest.warns(UserWarning, match="NOT be used") if kind == "pathological" else torch.no_grad():
        once, again = parts(settings), parts(settings)
    together = torch.cat(once)
    assert len(together.unique()) == len(together)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert min(map(len, once)) > 0


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shard"])
def test_parts_cover_everything(kind: str) -> None:
    assert sorted(torch.cat(parts(ClientSettings(partition=kind))).tolist()) == list(range(len(LABELS)))


def test_the_seed_changes_a_dirichlet_partition() -> None:
    first, second = (parts(ClientSettings(partition="dirichlet", seed=seed))[0] for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:Classes")
def test_pathological_clients_hold_as_many_classes_as_asked_for() -> None:
    for part in parts(ClientSettings(partition="pathological", classes_per_client=3)):
        assert len(LABELS[part].unique()) == 3


def test_a_small_alpha_makes_classes_more_unequal() -> None:
    def largest_share(alpha: float) -> float:
        found = parts(ClientSettings(partition="dirichlet", dirichlet_alpha=alpha))
        return max(float(LABELS[part].bincount().max() / len(part)) for part in found)

    assert largest_share(0.3) > 2 * largest_share(100.0)


def test_held_out_examples_are_disjoint_from_the_pool_and_repeatable() -> None:
    first, again, other = hold_out(100, 30, 7), hold_out(100, 30, 7), hold_out(100, 30, 8)
    assert sorted(torch.cat([first.calibration, first.pool]).tolist()) == list(range(100))
    assert len(first.calibration) == 30
    assert torch.equal(first.pool, again.pool)
    assert not torch.equal(first.pool, other.pool)


@pytest.mark.filterwarnings("ignore:The specified min_partition_size")
def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(DataError, match="calibration-size=100"):
        hold_out(100, 100, 0)
    with pytest.raises(DataError, match="too few"):
        partition_indices(LABELS[:3], ClientSettings(), 5, 0)
    with pytest.raises(DataError, match="no partition 5"):
        partition_indices(LABELS, ClientSettings(), 5, 5)
    with pytest.raises(DataError, match="dirichlet partition of 40 examples"):
        partition_indices(LABELS[:40], ClientSettings(partition="dirichlet", dirichlet_alpha=0.01), 10, 0)
