"""What the how-to pages take for granted: a network, its clients, and a grid to reach them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import save_file
from torch import Tensor, nn

from simulations.engines.grid import InProcessGrid

MODEL = """
from torch import nn


def Net():
    return nn.Sequential(nn.Linear({features}, 8), nn.ReLU(), nn.Linear(8, 3))
"""
app = ClientApp()


def Net(features: int = 6) -> nn.Module:  # noqa: N802  # as on the pages
    return nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 3))


def BatchNormNet() -> nn.Module:  # noqa: N802
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@app.train()
def train(message: Message, context: Context) -> Message:
    torch.manual_seed(int(context.node_config["partition-id"]))
    model = Net()
    model.load_state_dict(cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    metrics = MetricRecord({"num-examples": 10})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 10, "loss": 0.0})}), reply_to=message)


def namespace() -> dict[str, Any]:
    """Names that pages use without defining them."""
    torch.manual_seed(0)
    trained = [BatchNormNet() for _ in range(3)]
    return {
        "Net": Net,
        "BatchNormNet": BatchNormNet,
        "batch_norm_clients": [dict(net.state_dict()) for net in trained],
        "network": Net(),
        "state_dicts": [dict(Net().state_dict()) for _ in range(3)],
        "counts": [10, 20, 30],
        "average": dict(Net().state_dict()),
        "mapped_clients": [dict(Net().state_dict()) for _ in range(3)],
        "examples": [10, 20, 30],
        "ArrayRecord": ArrayRecord,
        "inputs": torch.randn(64, 6),
        "grid": InProcessGrid(app, 4, {}),
    }


def files(folder: Path, page: str) -> None:
    """A module ``model``, two checkpoints and data, as the page's commands expect them."""
    features = 64 if page == "merge-files" else 6
    (folder / "model.py").write_text(MODEL.format(features=features))
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        state: dict[str, Tensor] = dict(Net(features).state_dict())
        save_file(state, folder / f"{name}.safetensors")
    examples = torch.randn(40, features).numpy()
    np.savez(folder / "inputs.npz", x=examples)
    np.savez(folder / "test.npz", x=examples, y=np.arange(40) % 3)
