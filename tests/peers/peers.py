"""What Flower's examples federate, as a table, and clients that train it as the examples do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Result,
    Strategy,
)
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl import C2M3
from simulations.engines.grid import InProcessGrid
from tests.peers.networks import (
    CLASSES,
    FEATURES,
    LENGTH,
    SIDE,
    TOKENS,
    ConvNet,
    DenseNet,
    IncomeClassifier,
    LightningLike,
    NormalisedNet,
    PatchTransformer,
    TextClassifier,
    VariationalAutoencoder,
)

CLIENTS, EXAMPLES = 3, 128
SERVER = 1000  # draws the server's examples, as a client's number draws the client's

Batch = Mapping[str, Tensor]


def _generator(client: int) -> torch.Generator:
    return torch.Generator().manual_seed(client)


def images(client: int) -> Batch:
    """Noise with a bright quarter, which is the class."""
    generator = _generator(client)
    label = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
    image = torch.randn(EXAMPLES, 1, SIDE, SIDE, generator=generator)
    half = SIDE // 2
    for which in range(CLASSES):
        top, left = half * (which // 2), half * (which % 2)
        image[label == which, :, top : top + half, left : left + half] += 1.0
    return {"image": image, "label": label}


def brightness(client: int) -> Batch:
    """Noise of four strengths, which pooling over all positions shows."""
    generator = _generator(client)
    label = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
    strength = 0.5 + label.float()[:, None, None, None]
    return {"image": strength * torch.randn(EXAMPLES, 1, SIDE, SIDE, generator=generator), "label": label}


def texts(client: int) -> Batch:
    """Words of a topic, which is the class, among others; the last ones may be padding."""
    generator = _generator(client)
    labels = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
    words = torch.randint(0, TOKENS, (EXAMPLES, LENGTH), generator=generator)
    topic = labels[:, None] * (TOKENS // CLASSES) + words % (TOKENS // CLASSES)
    of_topic = torch.rand(EXAMPLES, LENGTH, generator=generator) < 0.6
    length = torch.randint(3, LENGTH + 1, (EXAMPLES, 1), generator=generator)
    mask = (torch.arange(LENGTH)[None] < length).long()
    return {"input_ids": torch.where(of_topic, topic, words) * mask, "attention_mask": mask, "labels": labels}


def rows(client: int) -> Batch:
    """Raw features in units of their own, a column each, and a target that is one or zero."""
    x = torch.randn(4 * EXAMPLES, FEATURES, generator=_generator(client))
    return {"x": x * torch.linspace(0.5, 2, FEATURES), "y": ((x[:, 0] * x[:, 1] + x[:, 2]) > 0).float()[:, None]}


def curves(client: int) -> Batch:
    """Points on a surface of three dimensions."""
    code = torch.randn(EXAMPLES, 3, generator=_generator(client))
    table = torch.randn(3, FEATURES, generator=_generator(SERVER + 1))
    return {"x": (code @ table).tanh()}


def _classified(module: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(module(batch["image"]), batch["label"])


def _read(module: nn.Module, batch: Batch) -> Tensor:
    return cast(Tensor, module(**batch).loss)


def _binary(module: nn.Module, batch: Batch) -> Tensor:
    return functional.binary_cross_entropy_with_logits(module(batch["x"]), batch["y"])


def _stepped(module: nn.Module, batch: Batch) -> Tensor:
    return cast(LightningLike, module).training_step(batch["x"], 0)


def _bounded(module: nn.Module, batch: Batch) -> Tensor:
    """Reconstruction, and a little of the divergence from the prior."""
    rebuilt, mean, spread = module(batch["x"])
    divergence = -0.5 * (1 + spread - mean.square() - spread.exp()).mean()
    return functional.mse_loss(rebuilt, batch["x"]) + 1e-3 * divergence


class Choosing:
    """What people override: a learning rate by round, and replies that do not count."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["lr"] = 0.01 / server_round
        return cast(Iterable[Message], super().configure_train(server_round, arrays, config, grid))  # type: ignore[misc]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        kept = [each for each in replies if cast(MetricRecord, each.content["metrics"])["client-id"] != CLIENTS - 1]
        return cast(Any, super().aggregate_train(server_round, kept))  # type: ignore[misc]


class ChoosingFedAvg(Choosing, FedAvg):
    pass


class ChoosingC2M3(Choosing, C2M3):
    pass


def _plain(**options: Any) -> Strategy:
    return C2M3(**options) if "module" in options else FedAvg(**options)


def _choosing(**options: Any) -> Strategy:
    return ChoosingC2M3(**options) if "module" in options else ChoosingFedAvg(**options)


def _clipped_by_server(**options: Any) -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(_plain(**options), 1e-5, 100.0, CLIENTS)


def _clipped_by_clients(**options: Any) -> Strategy:
    return DifferentialPrivacyClientSideFixedClipping(_plain(**options), 1e-5, 100.0, CLIENTS)


@lru_cache(maxsize=1)
def _backbone() -> Mapping[str, Tensor]:
    """A vision transformer that somebody has trained on other images, but for its heads."""
    with torch.random.fork_rng():
        torch.manual_seed(SERVER)
        network, batch = PatchTransformer().requires_grad_(True), images(SERVER + 1)
        _train(network, _classified, batch, 60, 0.01)
    return {name: t for name, t in network.state_dict().items() if not name.startswith("heads")}


def pretrained() -> nn.Module:
    """A backbone that is trained and frozen, under new heads."""
    network = PatchTransformer()
    network.load_state_dict(_backbone(), strict=False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("heads"))
    return network


def _train(
    module: nn.Module, loss_of: Callable[[nn.Module, Batch], Tensor], batch: Batch, steps: int, rate: float
) -> float:
    module.train()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], rate)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(module, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())


@dataclass(frozen=True)
class Peer:
    """What an example federates.

    Attributes
    ----------
    module
        Makes the network.
    data
        A client's examples; `SERVER` stands for the server's.
    loss
        Of a network on a batch.
    calibration
        What the operator gives of the server's batch.
    sent
        Whether a tensor is federated; the others stay where they are.
    prefix
        Of the tensors' names on the wire.
    strategy
        FedAvg, or C2M3 where there is a module.
    mods
        Of the ClientApp.
    options
        Of C2M3.
    steps
        Of a client's training in a round.
    ahead
        C2M3's loss after one round from own starts, at most this share of FedAvg's; None where FedAvg is no worse: the
        average of heads on features that a linear map separates.
    clients
        Whose replies count.
    """

    module: Callable[[], nn.Module]
    data: Callable[[int], Batch] = images
    loss: Callable[[nn.Module, Batch], Tensor] = _classified
    calibration: Callable[[Batch], Any] = lambda batch: [dict(batch)]
    sent: Callable[[str], bool] = lambda name: True
    prefix: str = ""
    strategy: Callable[..., Strategy] = _plain
    mods: Sequence[Any] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 40
    ahead: float | None = 0.7
    clients: int = CLIENTS


PEERS: dict[str, Peer] = {
    "quickstart-pytorch": Peer(ConvNet),
    "quickstart-huggingface": Peer(TextClassifier, texts, _read),
    "quickstart-pytorch-lightning": Peer(
        LightningLike, curves, _stepped, lambda batch: batch["x"], prefix="_orig_mod.", steps=100
    ),
    "fl-tabular": Peer(IncomeClassifier, rows, _binary, lambda batch: [(batch["x"], batch["y"])], steps=80),
    "pytorch-federated-variational-autoencoder": Peer(
        VariationalAutoencoder, curves, _bounded, lambda batch: batch["x"], steps=100
    ),
    "flowertune-vit": Peer(pretrained, sent=lambda name: name.startswith("heads."), steps=80, ahead=None),
    "fedbn": Peer(NormalisedNet, sent=lambda name: "bn" not in name),
    "quickstart-monai": Peer(DenseNet, brightness, steps=25),
    "custom-strategy": Peer(ConvNet, strategy=_choosing, clients=CLIENTS - 1),
    "dp-server-side-clipping": Peer(ConvNet, strategy=_clipped_by_server),
    "dp-client-side-clipping": Peer(ConvNet, strategy=_clipped_by_clients, mods=(fixedclipping_mod,)),
}


def initial(peer: Peer, seed: int = 0) -> nn.Module:
    """A network with random weights drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peer.module()


def sent(peer: Peer, module: nn.Module) -> ArrayRecord:
    """What goes over the wire of a network."""
    return ArrayRecord({peer.prefix + name: t for name, t in module.state_dict().items() if peer.sent(name)})


def load(peer: Peer, module: nn.Module, arrays: ArrayRecord) -> None:
    """Put what came over the wire into a network."""
    received = {name.removeprefix(peer.prefix): t for name, t in arrays.to_torch_state_dict().items()}
    rest = module.load_state_dict(received, strict=False)
    assert not rest.unexpected_keys
    assert not any(peer.sent(name) for name in rest.missing_keys)


def _stay(peer: Peer, module: nn.Module) -> ArrayRecord:
    return ArrayRecord({name: t for name, t in module.state_dict().items() if not peer.sent(name)})


def client_app(peer: Peer, own_start: bool) -> ClientApp:
    """Clients that train from what they get, or in the first round from networks of their own."""
    app = ClientApp()

    def received(message: Message, context: Context) -> nn.Module:
        module = initial(peer)
        if "home" in context.state:
            home = cast(ArrayRecord, context.state["home"]).to_torch_state_dict()
            module.load_state_dict(home, strict=False)
        load(peer, module, cast(ArrayRecord, message.content["arrays"]))
        return module

    @app.train(mods=list(peer.mods))
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        config = cast(ConfigRecord, message.content["config"])
        module = received(message, context)
        if own_start and config["server-round"] == 1:
            load(peer, module, sent(peer, initial(peer, 100 + client)))
        with torch.random.fork_rng():
            torch.manual_seed(client)
            loss = _train(module, peer.loss, peer.data(client), peer.steps, float(cast(float, config.get("lr", 0.01))))
        context.state["home"] = _stay(peer, module)
        metrics = MetricRecord({"num-examples": EXAMPLES, "client-id": client, "loss": loss})
        return Message(RecordDict({"arrays": sent(peer, module), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        module = received(message, context).eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            loss = float(peer.loss(module, peer.data(client)))
        return Message(RecordDict({"m": MetricRecord({"num-examples": EXAMPLES, "loss": loss})}), reply_to=message)

    return app


def strategy(peer: Peer, name: str) -> Strategy:
    """FedAvg or C2M3, as the example would build it."""
    sizes = {"min_train_nodes": CLIENTS, "min_evaluate_nodes": CLIENTS, "min_available_nodes": CLIENTS}
    if name == "fedavg":
        return peer.strategy(**sizes)
    calibration = peer.calibration(peer.data(SERVER))
    return peer.strategy(module=initial(peer), calibration=calibration, device="cpu", **sizes, **peer.options)


@cache
def run(example: str, name: str, own_start: bool, rounds: int) -> Result:
    """One run in this process."""
    peer = PEERS[example]
    grid = InProcessGrid(client_app(peer, own_start), CLIENTS, {})
    return strategy(peer, name).start(grid, sent(peer, initial(peer)), num_rounds=rounds)
