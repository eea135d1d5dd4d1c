"""A client: it trains its adapters on its own reviews, and sends nothing else."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lora.task import accuracy, adapters, build
from lora.task import train as train_fn
from lora.text import reviews

app = ClientApp()


def _received(msg):
    model = build()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict(), strict=False)
    return model


@app.train()
def train(msg: Message, context: Context):
    """Train the received adapters."""
    model = _received(msg)
    tokens, labels = reviews(300, seed=context.node_config["partition-id"])
    loss = train_fn(model, tokens, labels, context.run_config["local-epochs"], context.run_config["lr"])

    metrics = {"loss": loss, "num-examples": len(tokens)}
    content = RecordDict({"arrays": ArrayRecord(adapters(model)), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Evaluate the received adapters on other reviews of this client's."""
    tokens, labels = reviews(100, seed=1000 + context.node_config["partition-id"])
    metrics = {"accuracy": accuracy(_received(msg), tokens, labels), "num-examples": len(tokens)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
