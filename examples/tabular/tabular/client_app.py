"""A hospital."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tabular.task import accuracy, build, load_hospital
from tabular.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """Train the received network, or in round 1 this hospital's own."""
    partition = context.node_config["partition-id"]
    model = build()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    if context.run_config["own-start"] and msg.content["config"]["server-round"] == 1:
        torch.manual_seed(1 + partition)
        model = build()
    rows, labels = load_hospital(partition, context.node_config["num-partitions"])
    loss = train_fn(model, rows, labels, context.run_config["local-epochs"], context.run_config["lr"])

    metrics = {"loss": loss, "num-examples": len(rows)}
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Evaluate the received network on this hospital's rows."""
    model = build()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    rows, labels = load_hospital(context.node_config["partition-id"], context.node_config["num-partitions"])
    metrics = {"accuracy": accuracy(model, rows, labels), "num-examples": len(rows)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
