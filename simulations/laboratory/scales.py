"""The three sizes of every experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simulations.laboratory.endpoints import EndpointConfig
from simulations.laboratory.training import Recipe


@dataclass(frozen=True)
class Sizes:
    """Numbers of images, 0 for all.

    Attributes
    ----------
    test
        The first ones of the test set.
    train
        A fixed random part of the endpoints' training images.
    calibration
        Other training images, for REPAIR.
    """

    test: int
    train: int
    calibration: int


@dataclass(frozen=True)
class Sets:
    """Sets of networks: the numbers of networks in one, how many networks they are drawn from, most sets of one size."""

    numbers: tuple[int, ...]
    networks: int
    most: int


@dataclass(frozen=True)
class Scale:
    """A size.

    Attributes
    ----------
    name
        ``"smoke"``, ``"cpu"`` or ``"paper"``.
    about
        For people.
    networks
        The networks that experiments refer to by name; the name says what the paper used.
    many
        Per network, the numbers of networks to merge as n grows.
    widths
        Per network, those of the experiment on width.
    groups
        Per network, how often an experiment on few of them is repeated, each time with networks from other seeds.
    sizes
        Per architecture, the images to judge by.
    curve_points
        Positions on an interpolation curve.
    landscape_points
        Of the grid, in each direction.
    landscape_size
        Test images per point of a landscape.
    matching_seeds
        Number of seeds of Git Re-Basin, and of random starts.
    timing_numbers
        Numbers of networks to time.
    sets, by_activations
        Per network, the sets to match by every method, and by activations.
    compared
        Per network, the numbers of networks that all matchers are compared on.
    studied
        The network of the study of matchers' variants.
    more
        Networks that only the comparison of matchers and matching by activations refer to.
    """

    name: str
    about: str
    networks: Mapping[str, EndpointConfig]
    many: Mapping[str, tuple[int, ...]]
    widths: Mapping[str, tuple[float, ...]]
    groups: Mapping[str, int]
    sizes: Mapping[str, Sizes]
    curve_points: int
    landscape_points: int
    landscape_size: int
    matching_seeds: int
    timing_numbers: tuple[int, ...]
    sets: Mapping[str, Sets]
    by_activations: Mapping[str, Sets]
    compared: Mapping[str, tuple[int, ...]]
    studied: str
    more: Mapping[str, EndpointConfig]

    def sized(self, network: str) -> EndpointConfig:
        """A network of this scale, or one of `more`."""
        return {**self.more, **self.networks}[network]

    def sizes_of(self, config: EndpointConfig) -> Sizes:
        """The images to judge a configuration's networks by."""
        return self.sizes[config.model.partition(":")[0]]


def _perceptron(width: int, depth: int = 3) -> EndpointConfig:
    """784-W-...-W-10 on MNIST, by Adam in three epochs."""
    recipe = Recipe(3, 128, optimizer="adam", learning_rate=1e-3, weight_decay=0.0, clip_norm=1.0)
    return EndpointConfig("mnist", f"mlp:{'-'.join([str(width)] * depth)}", recipe)


def _wide(config: EndpointConfig, width: float) -> EndpointConfig:
    """A wide network that has seen 20,000 images twice and knows little."""
    return replace(config, width=width, train_size=20_000, recipe=replace(config.recipe, epochs=2, warmup_epochs=0.4))


def _smoke() -> Scale:
    quick = Recipe(epochs=2, batch_size=64, learning_rate=0.05, warmup_epochs=1, clip_norm=1.0)
    mlp = EndpointConfig("digits", "mlp", replace(quick, epochs=8), width=1 / 16)
    resnet = EndpointConfig("digits", "resnet20", quick, width=1 / 4, train_size=512)
    vgg = EndpointConfig("digits-32", "vgg16", quick, width=1 / 32, train_size=256)
    return Scale(
        name="smoke",
        about="tiny networks on 1,797 digits of 8x8 pixels: shows that everything runs, and nothing more",
        networks={
            "mlp-mnist": mlp,
            "mlp-emnist": mlp,
            "resnet20-emnist": resnet,
            "resnet20-cifar10": resnet,
            "resnet20-bn-cifar10": replace(resnet, norm="batch"),
            "resnet20-cifar100": resnet,
            "vgg16-cifar10": vgg,
            "vgg16-cifar100": vgg,
        },
        many={"mlp-mnist": (2, 3), "resnet20-cifar10": (2, 3)},
        widths={"resnet20-cifar10": (1 / 4, 1 / 2), "mlp-mnist": (1 / 16, 1 / 8)},
        groups={},
        sizes={"mlp": Sizes(128, 128, 64), "resnet20": Sizes(64, 64, 64), "vgg16": Sizes(64, 64, 64)},
        curve_points=3,
        landscape_points=3,
        landscape_size=64,
        matching_seeds=2,
        timing_numbers=(2, 3),
        sets={"mlp-mnist": Sets((2, 3), 3, 2)},
        by_activations={"mlp-mnist": Sets((2,), 3, 1)},
        compared={"mlp-mnist": (2, 3)},
        studied="mlp-mnist",
        more={},
    )


def _one_cycle(epochs: int, *, augment: bool = True, learning_rate: float = 3e-3) -> Recipe:
    """AdamW with a rate that rises over a fifth of the training and falls to zero: good networks in few epochs."""
    return Recipe(
        epochs=epochs,
        batch_size=128,
        optimizer="adamw",
        learning_rate=learning_rate,
        weight_decay=0.05,
        warmup_epochs=epochs / 5,
        decay="linear",
        augment=augment,
        precision="bfloat16",
        clip_norm=1.0,
        label_smoothing=0.1,
    )


def _cpu() -> Scale:
    mlp = EndpointConfig("mnist", "mlp", _one_cycle(10, augment=False, learning_rate=1e-3))
    resnet = EndpointConfig("cifar10", "resnet20", _one_cycle(13))
    vgg = EndpointConfig("cifar10", "vgg16", _one_cycle(20), width=0.25)
    return Scale(
        name="cpu",
        about="narrow networks, few epochs, at most 25 minutes of one core for each: hours on two cores",
        networks={
            "mlp-mnist": mlp,
            "mlp-emnist": replace(mlp, dataset="emnist-letters"),
            "resnet20-emnist": replace(resnet, dataset="emnist-letters", recipe=_one_cycle(4, augment=False)),
            "resnet20-cifar10": resnet,
            "resnet20-bn-cifar10": replace(resnet, norm="batch", recipe=_one_cycle(9)),
            "resnet20-cifar100": replace(resnet, dataset="cifar100"),
            "vgg16-cifar10": vgg,
            "vgg16-cifar100": replace(vgg, dataset="cifar100"),
        },
        many={"mlp-mnist": (2, 3, 5, 7, 10, 15, 20), "resnet20-cifar10": (2, 3, 5, 7, 10)},
        widths={"resnet20-cifar10": (0.5, 1.0, 2.0), "mlp-mnist": (0.125, 0.25, 0.5, 1.0)},
        groups={"mlp-mnist": 4, "vgg16-cifar10": 2, "vgg16-cifar100": 2, "resnet20-cifar10": 2},
        sizes={
            "mlp": Sizes(0, 5_000, 1_024),
            "resnet20": Sizes(2_500, 1_000, 512),
            "vgg16": Sizes(2_500, 1_000, 512),
        },
        curve_points=11,
        landscape_points=13,
        landscape_size=2_000,
        matching_seeds=9,
        timing_numbers=(2, 3, 5, 10),
        sets={
            "resnet20-bn-cifar10": Sets((2, 3, 4, 5), 5, 10),
            "resnet20-cifar10": Sets((2, 3, 4, 5), 5, 10),
            "vgg16-cifar10": Sets((2, 3, 4, 5), 5, 10),
            "mlp-mnist": Sets((2, 3, 5, 10), 20, 4),
        },
        by_activations={
            "mlp128": Sets((2, 3, 5, 10), 20, 4),
            "mlp512": Sets((5,), 10, 2),
            "resnet20-cifar10": Sets((3, 5), 10, 3),
            "vgg16-cifar10": Sets((3, 5), 5, 3),
        },
        compared={
            "mlp512": (2, 3, 5, 10, 20),
            "resnet20-cifar10": (2, 3, 5),
            "vgg16-cifar10": (3, 5),
            **dict.fromkeys(("mlp256", "mlp1024", "mlp256x1", "mlp256x6"), (5,)),
            **dict.fromkeys(("resnet20-2x", "vgg16-1x"), (2, 3)),
            "resnet20-4x": (2,),
        },
        studied="mlp512",
        more={
            **{f"mlp{width}": _perceptron(width) for width in (128, 256, 512, 1024)},
            **{f"mlp256x{depth}": _perceptron(256, depth) for depth in (1, 6)},
            **{f"resnet20-{width}x": _wide(resnet, width) for width in (2, 4)},
            "vgg16-1x": _wide(vgg, 1),
        },
    )


def _paper() -> Scale:
    recipe = Recipe(
        epochs=250, batch_size=100, learning_rate=0.1, weight_decay=1e-4, restart_epochs=10, precision="bfloat16"
    )
    resnet = EndpointConfig("cifar10", "resnet20", replace(recipe, warmup_epochs=1, augment=True), width=4.0)
    vgg = EndpointConfig(
        "cifar10",
        "vgg16",
        replace(
            recipe, epochs=100, learning_rate=0.05, weight_decay=5e-4, warmup_epochs=1, augment=True, clip_norm=1.0
        ),
    )
    mlp = EndpointConfig("mnist", "mlp", replace(recipe, learning_rate=0.05))
    return Scale(
        name="paper",
        about="the paper's networks and epochs, for a GPU",
        networks={
            "mlp-mnist": mlp,
            "mlp-emnist": replace(mlp, dataset="emnist-letters"),
            "resnet20-emnist": replace(resnet, dataset="emnist-letters"),
            "resnet20-cifar10": resnet,
            "resnet20-bn-cifar10": replace(resnet, norm="batch", width=2.0),
            "resnet20-cifar100": replace(resnet, dataset="cifar100"),
            "vgg16-cifar10": vgg,
            "vgg16-cifar100": replace(vgg, dataset="cifar100"),
        },
        many={"mlp-mnist": tuple(range(2, 21)), "resnet20-cifar10": tuple(range(2, 12))},
        widths={"resnet20-cifar10": (1.0, 2.0, 4.0, 8.0, 16.0), "mlp-mnist": (0.25, 0.5, 1.0, 2.0)},
        groups={"mlp-mnist": 4, "resnet20-cifar10": 2},
        sizes={name: Sizes(0, 10_000, 5_000) for name in ("mlp", "resnet20", "vgg16")},
        curve_points=25,
        landscape_points=25,
        landscape_size=0,
        matching_seeds=9,
        timing_numbers=(2, 3, 5, 10, 20),
        sets={
            name: Sets((2, 3, 5, 10), 10, 5) for name in ("resnet20-cifar10", "resnet20-bn-cifar10", "vgg16-cifar10")
        },
        by_activations={"resnet20-cifar10": Sets((3, 5), 10, 3)},
        compared={"mlp-mnist": (2, 5, 10, 20), "resnet20-cifar10": (2, 3, 5, 10), "vgg16-cifar10": (2, 3)},
        studied="mlp-mnist",
        more={},
    )


SCALES = {"smoke": _smoke, "cpu": _cpu, "paper": _paper}
"""The sizes by name."""
