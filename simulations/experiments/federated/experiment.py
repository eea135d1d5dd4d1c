"""C2M3 beside Flower's own strategies: the benchmark's tables and curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from simulations.app.settings import SimulationSettings
from simulations.experiments.federated.benchmark import cells
from simulations.experiments.federated.methods import METHODS
from simulations.experiments.federated.summary import Difference, Outcome, Result, summarise
from simulations.laboratory.drawing import grid, label
from simulations.laboratory.experiment import Experiment, Picture, Table, spread, spread_percent
from simulations.laboratory.ledger import Record

_USUAL_RATE = SimulationSettings().learning_rate
_OURS = ("c2m3", "c2m3-momentum", "c2m3-unbounded", "c2m3-repair")


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """One round; many rounds, C2M3 beside FedAvg; all strategies."""
    results = summarise(records)
    if one_shot := [each for each in results if each.cell.group == "one-shot"]:
        yield _one_shot_table(one_shot)
    if shared := [each for each in results if each.cell.group == "many-rounds"]:
        yield _never_worse_table(shared)
        yield _shared_table(shared)


def _describe(result: Result) -> str:
    settings, cell = result.cell.settings, result.cell
    dataset = settings.dataset + (f" ({settings.train_size:,})" if settings.train_size else "")
    network = settings.model + (f" {settings.model_width:g}x" if settings.model_width != 1 else "")
    if settings.model == "resnet20":
        network += f", {settings.model_norm} norm"
    skew = f"Dirichlet({settings.dirichlet_alpha:g})" if settings.partition == "dirichlet" else settings.partition
    skew = "IID" if skew == "iid" else skew
    if settings.initialisation == "per-client" and settings.num_server_rounds > 1:
        skew += ", own initialisations"
    pace = f", learning rate {settings.learning_rate:g}" if settings.learning_rate != _USUAL_RATE else ""
    asked = f"{round(cell.num_clients * settings.fraction_train)} of " if settings.fraction_train < 1 else ""
    length = f"{settings.local_epochs} local epoch" + ("s" if settings.local_epochs > 1 else "")
    length += f", {settings.num_server_rounds} rounds" if settings.num_server_rounds > 1 else ""
    return f"{dataset}, {network}, {skew}, {asked}{cell.num_clients} clients, {length}{pace}"


def _one_shot_table(results: Sequence[Result]) -> Table:
    measured = {name for each in results for name in each.outcomes}
    methods = [name for name in dict.fromkeys(m for each in results for m in each.cell.methods) if name in measured]
    rows = []
    for each in results:
        assert each.peers is not None
        ours = next((each.outcomes[name].final for name in _OURS if name in each.outcomes), None)
        rows.append(
            (
                _describe(each),
                str(len(each.seeds)),
                spread_percent(each.peers.mean),
                spread_percent(each.peers.best),
                *(spread_percent(each.outcomes[name].final) if name in each.outcomes else "" for name in methods),
                spread_percent(each.peers.ensemble),
                "" if ours is None else _gap(ours, each.peers.best, each.peers.ensemble),
            )
        )
    return Table(
        "One round, every client from its own initialisation: accuracy on the whole test set",
        (
            "cell",
            "seeds",
            "mean client",
            "best client",
            *(METHODS[name].label for name in methods),
            "ensemble",
            "gap from best client to ensemble closed by C2M3",
        ),
        tuple(rows),
    )


def _gap(ours: Sequence[float], best: Sequence[float], ensemble: Sequence[float]) -> str:
    gap = statistics.fmean(ensemble) - statistics.fmean(best)
    gained = statistics.fmean(ours) - statistics.fmean(best)
    return f"{100 * gained / gap:.0f} %" if gap > 0 else "no gap"


def _never_worse_table(results: Sequence[Result]) -> Table:
    rows = []
    for each in results:
        for name in (name for name in _OURS if name in each.outcomes):
            difference = Difference.between(each.outcomes[name].final, each.outcomes["fedavg"].final)
            rows.append(
                (
                    _describe(each),
                    METHODS[name].label,
                    f"{100 * difference.mean:+.2f}",
                    "" if math.isnan(difference.error) else f"{100 * difference.error:.2f}",
                    difference.verdict,
                )
            )
    return Table(
        "Many rounds, the last one: C2M3 less FedAvg, paired by seed. A difference within twice its standard error "
        "is a tie",
        ("cell", "strategy", "points of accuracy", "standard error", "verdict"),
        tuple(rows),
    )


def _shared_table(results: Sequence[Result]) -> Table:
    rows = [
        (
            _describe(each),
            METHODS[name].label,
            _rounds(outcome, each.cell.target),
            spread_percent(outcome.final),
            _loss(outcome),
            f"{outcome.megabytes:.1f}",
            spread(outcome.server_seconds),
        )
        for each in results
        for name, outcome in each.outcomes.items()
    ]
    return Table(
        "Many rounds: all strategies",
        (
            "cell",
            "strategy",
            "rounds to target",
            "final accuracy",
            "final loss (nats)",
            "MB a round, both ways",
            "server seconds a round",
        ),
        tuple(rows),
    )


def _loss(outcome: Outcome) -> str:
    final = [curve[-1] for curve in outcome.loss]
    return spread(final, "{:.3g}") if all(map(math.isfinite, final)) else "diverged"


def _rounds(outcome: Outcome, target: float) -> str:
    reached = outcome.rounds_to(target)
    if None in reached:
        missed = sum(each is None for each in reached)
        return f"{100 * target:.0f} %: not reached by {missed} of {len(reached)}"
    return f"{100 * target:.0f} %: " + spread([float(each) for each in reached if each is not None], "{:.1f}")


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Accuracy and loss by round."""
    results = [each for each in summarise(records) if each.cell.group == "many-rounds"]
    if not results:
        return
    figure, axes = grid(2, len(results), width=4.8, height=2.3)
    for row, result in enumerate(results):
        title = _describe(result)
        for column, (quantity, unit) in enumerate((("accuracy", "test accuracy (%)"), ("loss", "test loss (nats)"))):
            panel = axes[2 * row + column]
            for name, outcome in result.outcomes.items():
                curves = getattr(outcome, quantity)
                scale = 100 if quantity == "accuracy" else 1
                means = [scale * statistics.fmean(values) for values in zip(*curves, strict=True)]
                panel.plot(
                    range(len(means)), means, label=METHODS[name].label, color=METHODS[name].colour, linewidth=1.5
                )
            label(panel, title if column == 0 else "", "round", unit)
            if quantity == "loss":
                panel.set_yscale("log")
    axes[0].legend(fontsize=7, ncols=2)
    yield Picture("federated", "Test accuracy and loss by round.", figure)


EXPERIMENT = Experiment(
    name="federated",
    title="C2M3 beside Flower's own strategies",
    source="",
    about="Every strategy with the same clients, data, starting points and seeds, judged on the whole test set.",
    cells=cells,
    tables=tables,
    pictures=pictures,
    whole=False,
    page="federated",
)
