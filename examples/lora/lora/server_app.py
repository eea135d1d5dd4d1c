"""The server: what `initial_arrays` holds is what is federated; the rest of the network comes from `module`."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from c2m3_fl import C2M3
from lora.task import accuracy, adapters, build
from lora.text import reviews

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Judge the global adapters."""
    model = build()
    model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
    return MetricRecord({"accuracy": accuracy(model, *reviews(500, seed=999))})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train global adapters."""
    if context.run_config["strategy"] == "fedavg":
        strategy = FedAvg()
    else:
        unlabelled, _ = reviews(256, seed=998)
        strategy = C2M3(module=build(), calibration=unlabelled)

    arrays = ArrayRecord(adapters(build()))
    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    by_round = [metrics["accuracy"] for _, metrics in sorted(result.evaluate_metrics_serverapp.items())]
    print("test accuracy by round:", " ".join(f"{each:.1%}" for each in by_round))
