"""Draw docs/figures/universe.png: clients' neurons in their own orders, their plain average, and the universe."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

NEURONS = ("#d1495b", "#edae49", "#2e8b57", "#30638e", "#7d4f9e")
ORDERS = ((2, 0, 4, 1, 3), (1, 3, 0, 4, 2), (4, 2, 3, 0, 1))
"""Which of the neurons stands at each place of a client."""


def _column(axis: Axes, x: float, colours: list[tuple[float, float, float]], title: str) -> None:
    axis.scatter(
        [x] * len(colours), range(len(colours)), s=260, c=colours, edgecolors="black", linewidths=0.8, zorder=3
    )
    axis.text(x, len(colours) - 0.25, title, ha="center", va="bottom", fontsize=10)


def draw() -> Figure:
    """The picture."""
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(4, 7))
    colours = [to_rgb(colour) for colour in NEURONS]
    clients = [[colours[neuron] for neuron in order] for order in ORDERS]
    for number, client in enumerate(clients):
        _column(left, number, client, f"client {'ABC'[number]}")
    _column(left, 3.4, [tuple(map(float, np.mean(row, 0))) for row in zip(*clients, strict=True)], "average")
    left.set_title("as they come", fontsize=11)
    for number, (order, client) in enumerate(zip(ORDERS, clients, strict=True)):
        x = 2.1 * number
        _column(right, x, client, f"client {'ABC'[number]}")
        for place, neuron in enumerate(order):
            right.annotate(
                "",
                (x + 0.95, neuron),
                (x + 0.15, place),
                arrowprops={"arrowstyle": "-", "color": NEURONS[neuron], "linewidth": 1.4},
            )
        right.scatter(
            [x + 1.0] * len(NEURONS), range(len(NEURONS)), s=90, c=NEURONS, edgecolors="black", linewidths=0.6
        )
    _column(right, 7.2, colours, "average")
    right.set_title("each mapped into the universe", fontsize=11)
    for axis, width in ((left, 4.1), (right, 7.9)):
        axis.set(xlim=(-0.6, width), ylim=(-0.6, len(NEURONS) + 0.4))
        axis.axis("off")
    return figure


if __name__ == "__main__":
    default = Path(__file__).with_suffix(".png")
    draw().savefig(Path(sys.argv[1]) if len(sys.argv) > 1 else default, dpi=150)
