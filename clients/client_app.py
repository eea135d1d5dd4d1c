"""The Flower ClientApp: one client's share of the data, trained on and evaluated.

Its data are its share of the run's data set, or its own, if the node's config names a file by ``data``.

The app keeps nothing between messages. What a client does follows from the run config, from the number of its partition
and from the round, so that a run can be repeated, and a client may be served by any process.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from c2m3_fl.federation.client import MOMENTS_QUERY, answer_moments, attach_moments
from clients.data import DataError, Split, load_data, load_own
from clients.models import Norm, build_model
from clients.partition import hold_out, partition_indices
from clients.settings import ClientSettings
from clients.training import TrainOptions, choose_device, derive_seed, deterministic, evaluate, train

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
FIRST_ROUND = 1
MEASURED_EXAMPLES, MEASURED_BATCH = 512, 128
# What a seed is for: two uses of one generator must not share their numbers.
_FOR_INITIALISATION, _FOR_TRAINING, _FOR_VALIDATION = range(3)

app = ClientApp()


def new_model(settings: ClientSettings) -> nn.Module:
    """The run's network, with weights from torch's global generator."""
    data = load_data(settings.dataset, settings.data_dir, settings.download)
    return build_model(
        settings.model,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        width=settings.model_width,
        norm=cast(Norm, settings.model_norm),
    )


def initial_model(settings: ClientSettings, partition_id: int) -> nn.Module:
    """The random network from which one client sets out under per-client initialisation."""
    with deterministic(derive_seed(settings.seed, partition_id, _FOR_INITIALISATION)):
        return new_model(settings)


@lru_cache(maxsize=64)
def client_indices(settings: ClientSettings, num_partitions: int, partition_id: int) -> tuple[Tensor, Tensor]:
    """Indices into the training set of one client's training and validation examples."""
    labels = load_data(settings.dataset, settings.data_dir, settings.download).train.labels
    pool = hold_out(len(labels), settings.calibration_size, settings.seed).pool
    pool = pool[: settings.train_size or None]
    mine = pool[partition_indices(labels[pool], settings, num_partitions, partition_id)]
    return _split(mine, settings, partition_id)


def _split(mine: Tensor, settings: ClientSettings, partition_id: int) -> tuple[Tensor, Tensor]:
    """A client's examples in an order of its own, cut into those to train on and those to evaluate on."""
    seed = derive_seed(settings.seed, partition_id, _FOR_VALIDATION)
    mine = mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed))]
    held = int(len(mine) * settings.validation_fraction)
    if held == len(mine):
        raise DataError(f"Client {partition_id} holds no training example.")
    return mine[held:], mine[:held]


class _Job:
    """What a message asks of this client."""

    def __init__(self, message: Message, context: Context) -> None:
        self.settings = ClientSettings.parse(context.run_config)
        self.partition_id = int(context.node_config["partition-id"])
        self.own = context.node_config.get("data")
        self.num_partitions = 0 if self.own else int(context.node_config["num-partitions"])
        self.arrays = cast(ArrayRecord, message.content[ARRAYS])
        self.config = cast(ConfigRecord, message.content[CONFIG])
        self.round = cast(int, self.config["server-round"])
        self.device = choose_device(self.settings.client_device)

    def split(self, *, validation: bool) -> Split:
        data = load_data(self.settings.dataset, self.settings.data_dir, self.settings.download)
        if self.own:
            own = load_own(str(self.own), data)
            return own.select(_split(torch.arange(len(own)), self.settings, self.partition_id)[validation])
        return data.train.select(client_indices(self.settings, self.num_partitions, self.partition_id)[validation])

    def measured_inputs(self) -> list[Tensor]:
        """What activations are measured on: examples that this client does not train on, if it has some."""
        held = self.split(validation=True)
        examples = held if len(held) else self.split(validation=False)
        return list(torch.split(examples.inputs()[:MEASURED_EXAMPLES], MEASURED_BATCH))

    def model(self) -> nn.Module:
        """The broadcast network."""
        model = initial_model(self.settings, self.partition_id)
        model.load_state_dict(self.arrays.to_torch_state_dict())
        return model

    def starting_model(self) -> nn.Module:
        """The network to train: the broadcast one, or in the first round the client's own where each has its own."""
        if self.settings.initialisation == "per-client" and self.round == FIRST_ROUND:
            return initial_model(self.settings, self.partition_id)
        return self.model()

    def train_options(self) -> TrainOptions:
        return TrainOptions(
            epochs=self.settings.local_epochs,
            batch_size=self.settings.batch_size,
            optimizer=cast(Literal["sgd", "adam"], self.settings.optimizer),
            learning_rate=self.settings.learning_rate,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
            proximal_mu=cast(float, self.config.get("proximal-mu", 0.0)),
        )


@app.train()
def train_message(message: Message, context: Context) -> Message:
    """Train on this client's examples and send the network back.

    The reply's metrics are ``num-examples``, ``client-id`` (the partition's number: replies come in any order, and
    node ids change from run to run) and ``train-loss``, the mean over the last epoch.
    """
    job = _Job(message, context)
    examples = job.split(validation=False)
    model = job.starting_model()
    seed = derive_seed(job.settings.seed, job.partition_id, _FOR_TRAINING, job.round)
    with deterministic(seed, job.settings.client_threads):
        loss = train(model, examples.inputs(), examples.labels, job.train_options(), job.device)
    metrics = MetricRecord({"num-examples": len(examples), "client-id": job.partition_id, "train-loss": loss})
    content = RecordDict({ARRAYS: ArrayRecord(model.cpu().state_dict()), METRICS: metrics})
    with deterministic(job.settings.seed, job.settings.client_threads):
        attach_moments(content, message, model, job.measured_inputs(), device=job.device)
    return Message(content, reply_to=message)


@app.query(MOMENTS_QUERY)
def moments_message(message: Message, context: Context) -> Message:
    """Measure the merged network's activations, for a repair without data on the server."""
    job = _Job(message, context)
    with deterministic(job.settings.seed, job.settings.client_threads):
        return answer_moments(message, job.model(), job.measured_inputs(), device=job.device)


@app.evaluate()
def evaluate_message(message: Message, context: Context) -> Message:
    """Evaluate the broadcast network on this client's validation examples."""
    job = _Job(message, context)
    examples = job.split(validation=True)
    if len(examples) == 0:
        raise DataError(f"Client {job.partition_id} holds no validation example; see validation-fraction.")
    with deterministic(job.settings.seed, job.settings.client_threads):
        result = evaluate(job.model(), examples.inputs(), examples.labels, job.device)
    metrics = MetricRecord(
        {
            "num-examples": result.num_examples,
            "client-id": job.partition_id,
            "eval-loss": result.loss,
            "eval-accuracy": result.accuracy,
        }
    )
    return Message(RecordDict({METRICS: metrics}), reply_to=message)
