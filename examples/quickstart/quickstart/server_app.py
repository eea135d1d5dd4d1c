"""The server: Flower's template, with C2M3 in place of FedAvg."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from c2m3_fl import C2M3
from quickstart.task import Net, load_calibration, load_test
from quickstart.task import test as test_fn

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Judge the global model on the server's test digits."""
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test_fn(model, load_test())
    return MetricRecord({"loss": loss, "accuracy": accuracy})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a global model."""
    fraction_train = context.run_config["fraction-train"]
    arrays = ArrayRecord(Net().state_dict())

    strategy = C2M3(module=Net(), calibration=load_calibration(), fraction_train=fraction_train)

    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    accuracy = [metrics["accuracy"] for _, metrics in sorted(result.evaluate_metrics_serverapp.items())]
    print("test accuracy by round:", " ".join(f"{each:.1%}" for each in accuracy))
