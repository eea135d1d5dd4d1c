"""The client: as in Flower's template."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import Net, load_data
from quickstart.task import test as test_fn
from quickstart.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """Train the received network on this client's data."""
    partition = context.node_config["partition-id"]
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    if context.run_config["own-start"] and msg.content["config"]["server-round"] == 1:
        torch.manual_seed(1 + partition)
        model = Net()
    trainloader, _ = load_data(partition, context.node_config["num-partitions"])
    loss = train_fn(model, trainloader, context.run_config["local-epochs"], context.run_config["lr"])

    metrics = {"train_loss": loss, "num-examples": len(trainloader.dataset)}
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Evaluate the received network on this client's validation part."""
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, valloader = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    loss, accuracy = test_fn(model, valloader)

    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(valloader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
