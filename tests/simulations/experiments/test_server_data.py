"""The rivals do what their papers say, and the command measures every method on every kind of inputs."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.data import load_data
from simulations.experiments.server_data import one_round
from simulations.experiments.server_data.inputs import INPUTS
from simulations.experiments.server_data.rivals import State, distilled, fine_tuned, regmean


def network(seed: int) -> tuple[nn.Module, State]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return module, {name: value.clone() for name, value in module.state_dict().items()}


def output(module: nn.Module, state: State, x: Tensor) -> Tensor:
    module.load_state_dict(state)
    with torch.no_grad():
        return torch.as_tensor(module.eval()(x))


def test_regmean_of_equal_clients_is_the_client() -> None:
    module, state = network(0)
    inputs = [torch.randn(40, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for name, value in regmean(module, [state] * 3, [1, 2, 3], inputs).items():
        torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-4)


def test_regmean_weighs_each_client_where_its_inputs_lie() -> None:
    """Two clients that see different coordinates: of each, the weights of its own."""
    module = nn.Sequential(nn.Linear(2, 1))
    states = [{"0.weight": torch.tensor([[float(p), float(p)]]), "0.bias": torch.zeros(1)} for p in (1, 5)]
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    seen = [x * torch.tensor([1.0, 0.01]), x * torch.tensor([0.01, 1.0])]
    merged = regmean(module, states, [1, 1], seen)
    torch.testing.assert_close(merged["0.weight"], torch.tensor([[1.0, 5.0]]), rtol=0.05, atol=0.05)


def test_training_on_the_server_comes_closer_to_what_is_wanted() -> None:
    module, start = network(0)
    other, teacher = network(1)
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    scores = 3 * output(other, teacher, x)
    classes = scores.argmax(1)
    before = functional.cross_entropy(output(module, start, x), classes)
    for state in (
        distilled(module, start, x, scores, steps=100, rate=0.01),
        fine_tuned(module, start, x, classes, steps=100, rate=0.01),
    ):
        assert functional.cross_entropy(output(module, state, x), classes) < 0.5 * before


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_have_the_networks_shape_and_no_client_holds_them(kind: str) -> None:
    data = load_data("digits")
    free = torch.arange(len(data.train))[-500:]
    x, labels = INPUTS[kind](data, free)
    assert x.shape[1:] == data.input_shape
    assert 32 <= len(x) <= 256
    assert labels is None or len(labels) == len(x)
    assert bool(x.isfinite().all())


def test_the_command_measures_every_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rounds.jsonl"
    arguments = [
        "--dataset",
        "digits",
        "--train-size",
        "400",
        "--clients",
        "2",
        "--epochs",
        "1",
        "--inputs",
        "own-32",
        "noise",
        "--output",
    ]
    one_round.main([*arguments, str(output)])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["inputs"] for line in lines] == ["own-32", "noise"]
    assert {"ensemble", "fedavg", "least-squares", "least-squares, classifier", "regmean"} <= lines[0][
        "accuracy"
    ].keys()
    assert "fedavg, fine-tuned" in lines[0]["accuracy"]
    assert "fedavg, fine-tuned" not in lines[1]["accuracy"]
    assert all(0 <= value <= 100 for line in lines for value in line["accuracy"].values())
    assert "least-squares" in capsys.readouterr().out
