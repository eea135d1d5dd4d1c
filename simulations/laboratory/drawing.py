"""Figures that are legible in print: one style for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "naive": "#9aa0a6",
    "merge-many": "#d9822b",
    "git-re-basin": "#8a5fbf",
    "pairwise-frank-wolfe": "#3a9a6e",
    "frank-wolfe": "#3a9a6e",
    "c2m3": "#1f5fa8",
    "endpoint": "#444444",
}
LABELS = {
    "naive": "naive mean",
    "merge-many": "MergeMany",
    "git-re-basin": "Git Re-Basin",
    "pairwise-frank-wolfe": "pairwise Frank-Wolfe (Algorithm 3)",
    "frank-wolfe": "C2M3, the paper's Frank-Wolfe",
    "c2m3": "C2M3",
    "endpoint": "the networks themselves",
}


def grid(columns: int, rows: int = 1, *, width: float = 4.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure with axes in rows, row after row."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow to import, and not needed to measure)

    # Not pyplot's: that would keep every figure until it is closed.
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    flat = list(axes.flat)
    for each in flat:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25, linewidth=0.6)
    return figure, flat


def label(axes: Axes, title: str, x: str, y: str, **limits: Any) -> None:
    """Title and axis labels, with units."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set(**limits)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
