"""Which training examples each client holds, drawn by Flower's own partitioners."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import datasets
import numpy as np
import torch
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
)
from torch import Tensor

from clients.data import DataError
from clients.settings import ClientSettings

_LABEL, _INDEX = "label", "index"


@dataclass(frozen=True, eq=False)
class Holdout:
    """The training set split in two: what the server keeps for calibration, and what the clients share.

    Attributes
    ----------
    calibration, pool
        LongTensors of indices into the training set, disjoint, together all of it, in an order drawn by the seed.
    """

    calibration: Tensor
    pool: Tensor


def hold_out(count: int, size: int, seed: int) -> Holdout:
    """Draw `size` of `count` training examples for the server.

    Raises
    ------
    DataError
        If nothing would remain for the clients.
    """
    if not 0 <= size < count:
        raise DataError(f"calibration-size={size} leaves nothing of the {count} training examples for the clients.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return Holdout(calibration=order[:size], pool=order[size:])


def _partitioner(settings: ClientSettings, num_partitions: int) -> Partitioner:
    # The pool comes in an order drawn by the seed, so shuffling it is left to nobody else.
    match settings.partition:
        case "iid":
            return IidPartitioner(num_partitions=num_partitions)
        case "dirichlet":
            return DirichletPartitioner(
                num_partitions=num_partitions,
                partition_by=_LABEL,
                alpha=settings.dirichlet_alpha,
                seed=settings.seed,
            )
        case "pathological":
            return PathologicalPartitioner(
                num_partitions=num_partitions,
                partition_by=_LABEL,
                num_classes_per_partition=settings.classes_per_client,
                class_assignment_mode="first-deterministic",
                seed=settings.seed,
            )
        case "shard":
            return ShardPartitioner(
                num_partitions=num_partitions,
                partition_by=_LABEL,
                num_shards_per_partition=settings.shards_per_client,
                seed=settings.seed,
            )
        case other:
            raise DataError(f"There is no partition {other!r}.")


@lru_cache(maxsize=2)
def _partitioned(labels: bytes, settings: ClientSettings, num_partitions: int) -> Partitioner:
    """The partitioner with its data; it divides them once, so that a thousand clients of one process do not."""
    classes = np.frombuffer(labels, dtype=np.int64)
    partitioner = _partitioner(settings, num_partitions)
    partitioner.dataset = datasets.Dataset.from_dict({_LABEL: classes, _INDEX: np.arange(len(classes))})
    return partitioner


def partition_indices(labels: Tensor, settings: ClientSettings, num_partitions: int, partition_id: int) -> Tensor:
    """The examples of one client.

    Parameters
    ----------
    labels
        (N,), of the pool that the clients share.
    settings
        The kind of partition, its options, and the seed.
    num_partitions
        Number of clients.
    partition_id
        Which client, from 0.

    Returns
    -------
    Tensor
        LongTensor of indices into `labels`. The parts of all clients are disjoint. Together they are everything, but
        for the classes that a pathological partition gives to nobody and the remainder of equally large shards.

    Raises
    ------
    DataError
        If the examples cannot be divided so.
    """
    if not 0 <= partition_id < num_partitions:
        raise DataError(f"There is no partition {partition_id} among {num_partitions}, which count from 0.")
    if num_partitions > len(labels):
        raise DataError(f"{len(labels)} examples are too few for {num_partitions} clients.")
    try:
        partitioner = _partitioned(labels.numpy().tobytes(), settings, num_partitions)
        indices = np.asarray(partitioner.load_partition(partition_id)[_INDEX], dtype=np.int64)
    except ValueError as error:
        raise DataError(
            f"The {settings.partition} partition of {len(labels)} examples over {num_partitions} clients cannot be "
            f"made: {error}"
        ) from error
    return torch.from_numpy(indices)
