"""What is compared: federations, to each of which every strategy is put."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from simulations.app.settings import SimulationSettings

_IN_ONE_ROUND = (
    "fedavg",
    "fedmedian",
    "fedavg-repair",
    "c2m3-align",
    "c2m3-repair",
    "c2m3",
    "c2m3-once",
    "c2m3-groups",
    "c2m3-private",
)
_IN_MANY_ROUNDS = (
    "fedavg",
    "c2m3-default",
    "c2m3",
    "c2m3-unbounded",
    "fedavg-bounded",
    "c2m3-momentum",
    "c2m3-align",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedmedian",
)
_BRIEFLY = ("fedavg", "c2m3-default", "c2m3", "c2m3-momentum", "c2m3-unbounded", "fedavg-bounded", "fedprox", "fedadam")


@dataclass(frozen=True)
class Federation:
    """A federation, and the strategies to compare in it.

    Attributes
    ----------
    name
        Unique within a scale.
    group
        Which table it belongs to: ``"one-shot"`` or ``"many-rounds"``.
    num_clients
        Clients there are; each round asks ``settings.fraction_train`` of them.
    settings
        All but strategy and seed.
    methods
        Names of `simulations.experiments.federated.methods.METHODS`.
    seeds
        Each is one repetition: other partition, other initialisation, other order of examples.
    target
        Test accuracy; the summary counts the rounds that it takes to reach it.
    """

    name: str
    group: str
    num_clients: int
    settings: SimulationSettings
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    target: float


_PARTITIONS: dict[str, dict[str, Any]] = {
    "iid": {"partition": "iid"},
    "dirichlet-1.0": {"partition": "dirichlet", "dirichlet_alpha": 1.0},
    "dirichlet-0.3": {"partition": "dirichlet", "dirichlet_alpha": 0.3},
    "dirichlet-0.1": {"partition": "dirichlet", "dirichlet_alpha": 0.1},
    "pathological": {"partition": "pathological", "classes_per_client": 2},
}


def _one_shot(
    base: SimulationSettings, seeds: tuple[int, ...], clients: tuple[int, ...], target: float
) -> Iterator[Federation]:
    """One round, every client from its own random network, repaired as is best for a single round."""
    base = replace(base, initialisation="per-client", num_server_rounds=1, repair="repair-pooled")
    for num_clients in clients:
        for partition in ("iid", "dirichlet-0.3"):
            yield Federation(
                name=f"one-shot-{base.dataset}-{base.model}-{partition}-n{num_clients}",
                group="one-shot",
                num_clients=num_clients,
                settings=replace(base, **_PARTITIONS[partition]),
                methods=_IN_ONE_ROUND,
                seeds=seeds,
                target=target,
            )


def _shared(
    base: SimulationSettings, seeds: tuple[int, ...], num_clients: int, target: float, *partitions: str, note: str = ""
) -> Iterator[Federation]:
    """Several rounds from the server's network."""
    for partition in partitions:
        yield Federation(
            name=f"shared-{base.dataset}-{base.model}{note}-{partition}-e{base.local_epochs}-n{num_clients}",
            group="many-rounds",
            num_clients=num_clients,
            settings=replace(base, **_PARTITIONS[partition]),
            methods=_IN_MANY_ROUNDS,
            seeds=seeds,
            target=target,
        )


def _thousand(base: SimulationSettings) -> Iterator[Federation]:
    """A thousand clients, of which each round asks a hundred; from the server's network, and from their own."""
    for start in ("shared", "per-client"):
        yield Federation(
            name=f"thousand-{base.dataset}-{base.model}-{start}",
            group="many-rounds",
            num_clients=1000,
            settings=replace(base, initialisation=start, fraction_train=0.1),
            methods=("fedavg", "c2m3"),
            seeds=(0, 1, 2),
            target=0.8,
        )


_BASE = SimulationSettings(repair="repair-bounded", validation_fraction=0.0, client_device="auto", server_device="auto")
_DIGITS = replace(_BASE, dataset="digits", model="mlp", model_width=0.25)
_MNIST = replace(_BASE, dataset="mnist", model="mlp", batch_size=64)
_CIFAR10 = replace(_BASE, dataset="cifar10", model="cnn", batch_size=64)


def _smoke() -> Iterator[Federation]:
    tiny = replace(_DIGITS, model_width=0.1, local_epochs=1)
    for cell in (
        *_one_shot(replace(tiny, local_epochs=5), (0, 1), (3,), 0.5),
        *_shared(replace(tiny, num_server_rounds=2), (0,), 3, 0.5, "dirichlet-0.3"),
    ):
        yield replace(cell, methods=("fedavg", "fedadam", "c2m3") if cell.group == "many-rounds" else cell.methods)


def _cpu() -> Iterator[Federation]:
    seeds = (0, 1, 2)
    yield from _one_shot(replace(_MNIST, train_size=20_000), (*seeds, 3, 4, 5), (5,), 0.9)
    yield from _one_shot(replace(_MNIST, train_size=20_000), seeds, (10,), 0.9)
    rounds = replace(_DIGITS, num_server_rounds=10)
    yield from _shared(replace(rounds, local_epochs=5), seeds, 10, 0.9, *_PARTITIONS)
    mnist = replace(_MNIST, train_size=6_000, model_width=0.5, num_server_rounds=6, local_epochs=5)
    for cell in _shared(mnist, seeds, 10, 0.9, "dirichlet-0.3", "iid", "dirichlet-1.0", "dirichlet-0.1"):
        yield replace(cell, methods=(*_BRIEFLY, "c2m3-groups", "c2m3-private"))
    for own in (replace(mnist, initialisation="per-client"), replace(rounds, initialisation="per-client")):
        for cell in _shared(replace(own, local_epochs=5), seeds, 10, 0.9, "iid", "dirichlet-0.3", note="-own"):
            yield replace(cell, methods=("fedavg", "c2m3", "c2m3-repair", "c2m3-groups", "c2m3-private"))
    # Flower's examples take shorter steps than ours.
    for slow in (replace(mnist, learning_rate=0.02), replace(rounds, learning_rate=0.02)):
        for cell in _shared(replace(slow, local_epochs=5), seeds, 10, 0.9, "dirichlet-0.3", note="-lr0.02"):
            yield replace(cell, methods=("fedavg", "c2m3", "c2m3-unbounded", "fedavg-bounded"))
    brief = replace(rounds, local_epochs=1, num_server_rounds=30)  # ten such rounds teach nothing
    yield from _shared(brief, seeds, 10, 0.9, "iid", "dirichlet-0.3")
    long = replace(rounds, local_epochs=20)
    yield from _shared(long, (*seeds, 3, 4, 5), 10, 0.9, "iid")
    yield from _shared(long, seeds, 10, 0.9, "dirichlet-0.3")
    partial = replace(rounds, local_epochs=5, fraction_train=0.3)
    yield from _shared(partial, seeds, 20, 0.9, "iid", "dirichlet-0.3", note="-partial")
    cifar = replace(_CIFAR10, train_size=2_000, model_width=0.5, local_epochs=3, num_server_rounds=6)
    for partition, repeated in (("dirichlet-0.3", seeds), ("iid", (*seeds, 3, 4, 5))):
        for cell in _shared(cifar, repeated, 5, 0.4, partition):
            yield replace(cell, methods=_BRIEFLY)
    hundred = replace(cifar, dataset="cifar100", train_size=4_000)
    for partition, repetitions in (("iid", 3), ("dirichlet-0.3", 10)):
        for cell in _shared(hundred, tuple(range(repetitions)), 5, 0.08, partition):
            yield replace(cell, methods=("fedavg", "c2m3"))
    yield from _thousand(replace(_MNIST, model_width=0.25, batch_size=16, num_server_rounds=3))
    for norm, repeated in (("batch", (*seeds, 3, 4, 5)), ("layer", seeds)):
        deep = replace(
            _DIGITS, model="resnet20", model_width=0.25, model_norm=norm, local_epochs=5, num_server_rounds=8
        )
        for cell in _shared(deep, repeated, 5, 0.9, "dirichlet-0.3", note=f"-{norm}norm"):
            yield replace(cell, methods=(*_BRIEFLY, "c2m3-recalibrate"))


def _paper() -> Iterator[Federation]:
    seeds = (0, 1, 2, 3, 4)
    yield from _one_shot(_MNIST, seeds, (5, 10, 20), 0.95)
    resnet = replace(_CIFAR10, model="resnet20", model_width=4.0, learning_rate=0.1, weight_decay=1e-4)
    yield from _one_shot(replace(resnet, local_epochs=100), seeds, (2, 5, 10), 0.8)
    for base, target in ((_DIGITS, 0.95), (_MNIST, 0.97), (resnet, 0.8), (replace(resnet, dataset="cifar100"), 0.5)):
        for epochs in (1, 5, 20):
            trained = replace(base, local_epochs=epochs, num_server_rounds=50)
            yield from _shared(trained, seeds, 10, target, *_PARTITIONS)
            yield from _shared(
                replace(trained, fraction_train=0.1), seeds, 100, target, "iid", "dirichlet-0.3", note="-partial"
            )
    batch = replace(resnet, model_norm="batch", local_epochs=5, num_server_rounds=50)
    yield from _shared(batch, seeds, 10, 0.8, *_PARTITIONS, note="-batchnorm")


SCALES = {"smoke": _smoke, "cpu": _cpu, "paper": _paper}
"""The sizes by name: seconds, hours on two cores, and what a GPU needs days for. The first ones matter most."""
