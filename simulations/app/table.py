"""What a run that compares strategies prints at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simulations.app.records import RoundRecord


def comparison_table(rounds: Sequence[RoundRecord]) -> Iterator[str]:
    """Test accuracies by round, in per cent: clients, their ensemble, and each strategy on the same replies.

    Nothing for a run that compared none.
    """
    compared = [each for each in rounds if each.comparison]
    if not compared:
        return
    names = list(compared[0].comparison["merged"])
    widths = [max(len(name), 8) for name in names]
    head = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    yield "Test accuracy in per cent, strategies on the same replies:"
    yield f"round   clients  ensemble  {head}"
    for each in compared:
        merged = each.comparison["merged"]
        cells = [
            f"{100 * merged[name]:{width}.1f}" if name in merged else f"{'none':>{width}}"
            for name, width in zip(names, widths, strict=True)
        ]
        clients, ensemble = 100 * each.comparison["clients_mean"], 100 * each.comparison["ensemble"]
        yield f"{each.round:>5}  {clients:8.1f}  {ensemble:8.1f}  " + "  ".join(cells)
