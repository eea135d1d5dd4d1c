"""One round of clients from their own starts: what each method makes of the server's inputs."""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from c2m3_fl.activations.calibration import CalibrationSet
from c2m3_fl.activations.network import private_network
from c2m3_fl.alignment import align
from c2m3_fl.averaging import average
from c2m3_fl.repair import repair
from c2m3_fl.repair.classifier import refit_classifier
from c2m3_fl.repair.methods import Method
from c2m3_fl.symmetry import PermutationSpec
from clients.data import ImageData, load_data
from clients.models import build_model
from clients.partition import partition_indices
from clients.settings import ClientSettings
from clients.training import TrainOptions, derive_seed, deterministic, evaluate, train
from simulations.experiments.server_data.inputs import INPUTS
from simulations.experiments.server_data.rivals import State, distilled, fine_tuned, regmean

_CPU = torch.device("cpu")
_FREE = 6_000  # training images that no client holds, for the server to draw from
_REPAIRS: tuple[Method, ...] = ("repair", "repair-pooled", "least-squares")


@dataclass(frozen=True, eq=False)
class Round:
    """What the clients return.

    Attributes
    ----------
    module
        The architecture.
    data
        The data set.
    free
        Indices of training images that no client holds.
    parts
        Per client the indices of its own.
    clients
        Their networks.
    universe
        The same, aligned.
    """

    module: nn.Module
    data: ImageData
    free: Tensor
    parts: Sequence[Tensor]
    clients: Sequence[State]
    universe: Sequence[Mapping[str, Tensor]]

    @property
    def weights(self) -> list[float]:
        """Examples of each client."""
        return [float(len(part)) for part in self.parts]

    def accuracy(self, state: Mapping[str, Tensor]) -> float:
        """On the test set, in per cent."""
        self.module.load_state_dict(dict(state))
        return 100 * evaluate(self.module, self.data.test.inputs(), self.data.test.labels, _CPU).accuracy

    def ensemble(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The clients' weighted mean probabilities, and their mean class scores, each ``(examples, classes)``."""
        probabilities, scores = torch.zeros(()), torch.zeros(())
        for weight, client in zip(self.weights, self.clients, strict=True):
            self.module.load_state_dict(dict(client))
            with torch.no_grad():
                output = self.module.eval()(inputs)
            share = weight / sum(self.weights)
            probabilities, scores = probabilities + share * output.softmax(1), scores + share * output
        return probabilities, scores


def play(settings: ClientSettings, num_clients: int) -> Round:
    """Train the clients of a round, each from its own random network, and align them."""
    data = load_data(settings.dataset, settings.data_dir)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(settings.seed))
    pool, free = order[: settings.train_size], order[settings.train_size :][:_FREE]
    labels = data.train.labels[pool]
    parts = [pool[partition_indices(labels, settings, num_clients, client)] for client in range(num_clients)]
    options = TrainOptions(settings.local_epochs, settings.batch_size, learning_rate=settings.learning_rate)
    clients = []
    for client, part in enumerate(parts):
        with deterministic(derive_seed(settings.seed, client)):
            module = _build(settings, data)
            own = data.train.select(part)
            train(module, own.inputs(), own.labels, options, _CPU)
        clients.append({name: value.detach().clone() for name, value in module.state_dict().items()})
    module = _build(settings, data)
    spec = PermutationSpec.from_module(module, data.test.select(torch.arange(2)).inputs())
    universe = align(clients, spec, weights=[len(part) for part in parts], device=_CPU).apply(clients)
    return Round(module, data, free, parts, clients, universe)


def _build(settings: ClientSettings, data: ImageData) -> nn.Module:
    return build_model(
        settings.model,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        width=settings.model_width,
        norm="batch" if settings.model_norm == "batch" else "layer",
    )


def merged(played: Round, inputs: Tensor, labels: Tensor | None) -> Iterator[tuple[str, State]]:
    """Every method's network, by name."""
    probabilities, scores = played.ensemble(inputs)
    plain, aligned = average(played.clients, played.weights), average(played.universe, played.weights)
    yield "fedavg", plain
    yield "aligned", aligned
    repaired: dict[Method, State] = {}
    for method in _REPAIRS:
        repaired[method] = repair(
            played.module, aligned, played.universe, inputs, weights=played.weights, method=method, device=_CPU
        )
        yield method, repaired[method]
    yield "least-squares, classifier", _classified(played, repaired["least-squares"], inputs, probabilities.argmax(1))
    yield "fedavg, distilled", distilled(played.module, plain, inputs, scores)
    yield "repair-pooled, distilled", distilled(played.module, repaired["repair-pooled"], inputs, scores)
    if labels is not None:
        yield "fedavg, fine-tuned", fine_tuned(played.module, plain, inputs, labels)
    if all(
        key.endswith((".weight", ".bias")) and value.dim() <= 2 for key, value in plain.items()
    ):  # linear layers alone
        seen = [played.data.train.select(part).inputs() for part in played.parts]
        yield "regmean", regmean(played.module, played.clients, played.weights, seen)
        yield "aligned, regmean", regmean(played.module, played.universe, played.weights, seen)


def _classified(played: Round, state: State, inputs: Tensor, classes: Tensor) -> State:
    with private_network(played.module, _CPU) as network:
        batches = CalibrationSet.read(inputs, network.module).batches
        network.load(state, "the merged network")
        return refit_classifier(network, state, network.sites(batches[0]), batches, [classes])


def main(arguments: Sequence[str]) -> None:
    """Measure, write one line of JSON a round and kind of inputs, print the means."""
    parser = argparse.ArgumentParser(prog="python -m simulations server-data", description=__doc__)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--train-size", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument(
        "--alpha", type=float, default=0.0, help="of the Dirichlet partition; 0: identically distributed"
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--inputs", nargs="+", choices=list(INPUTS), default=["own"])
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to")
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in options.seeds:
        settings = ClientSettings(
            seed=seed,
            dataset=options.dataset,
            data_dir=options.data_dir,
            train_size=options.train_size,
            model=options.model,
            partition="dirichlet" if options.alpha else "iid",
            dirichlet_alpha=options.alpha or 0.5,
            local_epochs=options.epochs,
        )
        played = play(settings, options.clients)
        for kind in options.inputs:
            values = _measured(played, kind)
            for method, accuracy in values.items():
                found[kind][method].append(accuracy)
            if options.output is not None:
                about = {"seed": seed, "clients": options.clients, "alpha": options.alpha, "inputs": kind}
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**about, "dataset": options.dataset, "accuracy": values}) + "\n")
    for kind, methods in found.items():
        print(f"inputs: {kind}")
        for method, accuracies in methods.items():
            print(f"  {method:28} {_mean(accuracies)}")


def _measured(played: Round, kind: str) -> dict[str, float]:
    inputs, labels = INPUTS[kind](played.data, played.free)
    probabilities, _ = played.ensemble(played.data.test.inputs())
    right = probabilities.argmax(1) == played.data.test.labels
    values = {
        "clients": statistics.fmean(played.accuracy(client) for client in played.clients),
        "ensemble": 100 * float(right.double().mean()),
    }
    return values | {method: played.accuracy(state) for method, state in merged(played, inputs, labels)}


def _mean(values: Sequence[float]) -> str:
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):5.1f}{error} %, {len(values)} seed(s)"
