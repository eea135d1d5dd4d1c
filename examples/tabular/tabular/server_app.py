"""The coordinator: it holds 64 rows without labels, and a test set of its own."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from c2m3_fl import C2M3
from tabular.task import accuracy, build, load_calibration, load_test

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Judge the global model."""
    model = build()
    model.load_state_dict(arrays.to_torch_state_dict())
    return MetricRecord({"accuracy": accuracy(model, *load_test())})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a global model."""
    if context.run_config["strategy"] == "fedavg":
        strategy = FedAvg()
    else:
        strategy = C2M3(module=build(), calibration=load_calibration())

    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(build().state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    by_round = [metrics["accuracy"] for _, metrics in sorted(result.evaluate_metrics_serverapp.items())]
    print("test accuracy by round:", " ".join(f"{each:.1%}" for each in by_round))
