"""Whatever people federate: planted permutations come back, or the set-up is refused before anybody trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from torch import Tensor, nn

from c2m3_fl import C2M3, ClientError, OptionError, RepairError, SpecError
from c2m3_fl.symmetry.wrappers import plain_module, plain_name
from tests.federation.kinds import KINDS, Kind, Wrapped, function, inputs, perceptron

CLIENTS = 3


class Grid:
    def get_node_ids(self) -> list[int]:
        return list(range(CLIENTS))


def messages(records: Iterable[ArrayRecord], **metrics: Any) -> list[Message]:
    given = {"num-examples": 10} | metrics
    contents = [RecordDict({"arrays": record, "metrics": MetricRecord(given)}) for record in records]
    return [
        Message(content, reply_to=Message(RecordDict(), node, MessageType.TRAIN))
        for node, content in enumerate(contents)
    ]


def begin(strategy: C2M3, arrays: ArrayRecord) -> None:
    strategy.configure_train(1, arrays, ConfigRecord(), Grid())  # type: ignore[arg-type]


def built(kind: Kind, **options: Any) -> tuple[nn.Module, C2M3]:
    torch.manual_seed(7)
    module = kind.module()
    given = {"module": module, "calibration": kind.calibration(module), "device": "cpu"} | dict(kind.options) | options
    strategy = C2M3(**given)  # type: ignore[arg-type]
    begin(strategy, kind.send(plain_module(module).state_dict()))
    return module, strategy


def planted(kind: Kind, module: nn.Module, strategy: C2M3) -> list[ArrayRecord]:
    """What clients send that hold the network in permutations that leave its function as it is."""
    generator = torch.Generator().manual_seed(3)
    own = dict(plain_module(module).state_dict())
    records = []
    for _ in range(CLIENTS):
        permuted = strategy.spec.apply(
            {name: own[name] for name in strategy.spec.tensors}, strategy.spec.random(generator)
        )
        records.append(kind.send(own | permuted))
    return records


def loaded(module: nn.Module, kind: Kind, arrays: ArrayRecord) -> nn.Module:
    """The module with what the strategy returned, under the names that it had when it was sent."""
    names = list(kind.send(plain_module(module).state_dict()))
    assert list(arrays) == names
    result = copy.deepcopy(plain_module(module))
    own = list(result.state_dict())
    tensors = arrays.to_torch_state_dict().items()
    given = {
        (own[int(name)] if name.isdecimal() and name not in own else plain_name(name)): tensor
        for name, tensor in tensors
    }
    result.load_state_dict(given, strict=False)
    return result


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("repair", ["auto", "repair-bounded"])
def test_planted_permutations_come_back(name: str, repair: str) -> None:
    kind = KINDS[name]
    module, strategy = built(kind, repair=repair)
    assert len(strategy.spec.groups) >= kind.groups
    arrays, metrics = strategy.aggregate_train(1, messages(planted(kind, module, strategy)))
    assert arrays is not None
    assert metrics is not None
    assert metrics["c2m3-clients"] == CLIENTS
    sent = kind.send(plain_module(module).state_dict())
    assert {key: (array.dtype, array.shape) for key, array in arrays.items()} == {
        key: (array.dtype, array.shape) for key, array in sent.items()
    }
    before = function(plain_module(module), kind.arguments())
    after = function(loaded(module, kind, arrays), kind.arguments())
    for expected, found in zip(before, after, strict=True):
        np.testing.assert_allclose(found, expected, atol=kind.tolerance * float(np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("name", ["complex and infinite buffers", "observers"])
def test_buffers_that_nobody_trains_are_left_to_the_bit(name: str) -> None:
    kind = KINDS[name]
    module, strategy = built(kind)
    arrays, _ = strategy.aggregate_train(1, messages(planted(kind, module, strategy)))
    assert arrays is not None
    merged = arrays.to_torch_state_dict()
    for buffer, tensor in module.named_buffers():
        assert torch.equal(merged[buffer], tensor)


def test_what_some_clients_observed_counts() -> None:
    kind = KINDS["observers"]
    module, strategy = built(kind)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    seen = [own | {"low": torch.tensor([value, float("inf")])} for value in (1.0, 3.0)]
    arrays, _ = strategy.aggregate_train(1, messages(ArrayRecord(each) for each in [own, *seen]))
    assert arrays is not None
    assert arrays.to_torch_state_dict()["low"].tolist() == [2.0, float("inf")]


def test_regression_from_own_initialisations_is_judged_as_regression(flower_log: pytest.LogCaptureFixture) -> None:
    """Three perceptrons that learnt the same two quantities from their own starts, with and without targets."""

    def learnt(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
        x = inputs(11, 512)
        y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
        return {name: tensor.detach() for name, tensor in net.state_dict().items()}

    clients = [learnt(seed) for seed in range(CLIENTS)]
    x = inputs(12, 256)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)
    for calibration in (x, [(x, y)]):
        strategy = C2M3(
            module=lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2)),
            calibration=calibration,
            device="cpu",
        )
        arrays, metrics = strategy.aggregate_train(1, messages(ArrayRecord(each) for each in clients))
        assert arrays is not None
        assert metrics is not None
        scores = {key: value for key, value in metrics.items() if key.startswith("c2m3-score-")}
        assert float(scores["c2m3-score-aligned"]) < float(scores["c2m3-score-average"])  # type: ignore[arg-type]
        assert metrics["c2m3-chosen"] >= 2  # type: ignore[operator]


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "wrong features": ({"calibration": torch.randn(8, 5)}, SpecError, "shape"),
    "features wrong in a later batch": (
        {"calibration": [inputs(), torch.randn(8, 5)]},
        RepairError,
        r"calibration batch 1",
    ),
    "labels out of range": ({"calibration": [(inputs(), torch.full((96,), 3))]}, RepairError, "without labels"),
    "more labels than inputs": (
        {"calibration": [(inputs(), torch.zeros(95))]},
        RepairError,
        "96 inputs and 95 targets",
    ),
    "ambiguous names": ({"calibration": [{"a": inputs(), "b": inputs()}]}, RepairError, "forward takes"),
    "no example": ({"calibration": inputs()[:0]}, RepairError, "no example"),
    "not finite": ({"calibration": inputs() / 0}, RepairError, "NaN or infinite"),
    "no predictions": (
        {"module": lambda: Wrapped(lambda y, h: {"boxes": (y > 0).long()})},
        RepairError,
        "predictions=",
    ),
    "no such predictions": (
        {"module": lambda: Wrapped(lambda y, h: {"y": y}), "predictions": "z"},
        RepairError,
        "predictions=",
    ),
    "no such task": ({"task": "clustering"}, OptionError, "no task 'clustering'"),
    "task that does not fit": (
        {"module": lambda: perceptron(1), "task": "classification"},
        OptionError,
        "no scores of classes",
    ),
    "no such matcher": ({"matcher": "hungarian"}, OptionError, "no matcher 'hungarian'"),
    "no such repair": ({"repair": "glue"}, OptionError, "no repair 'glue'"),
    "no such robust mode": ({"robust": "yes"}, OptionError, "no robust mode 'yes'"),
    "no such device": ({"device": "tpu9"}, OptionError, "'tpu9' is no device"),
    "group of one": ({"group_size": 1}, OptionError, "at least 2"),
    "no lost rounds": ({"max_lost_rounds": 0}, OptionError, "max_lost_rounds"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_mistake_of_the_set_up_is_refused_when_the_strategy_is_built(fault: str) -> None:
    options, error, words = REFUSED[fault]
    given = {"module": perceptron, "calibration": inputs(), "device": "cpu"} | options
    with pytest.raises(error, match=words):
        C2M3(**given)


BROADCASTS: dict[str, tuple[ArrayRecord, str]] = {
    "nothing": (ArrayRecord(), "empty"),
    "another network": (ArrayRecord({"x.weight": torch.zeros(2, 2)}), "'x.weight', which the module does not have"),
    "another width": (
        ArrayRecord(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).state_dict()),
        r"'0.weight' with shape \(5, 6\); the module's has shape \(12, 6\)",
    ),
    "a list of another length": (ArrayRecord([np.zeros(3)]), "a list of 1, the module has 4 tensors"),
    "not finite": (
        ArrayRecord({name: tensor / 0 for name, tensor in perceptron().state_dict().items()}),
        "NaN or infinite",
    ),
}


@pytest.mark.parametrize("fault", BROADCASTS)
def test_a_broadcast_that_is_not_the_modules_ends_the_run_before_anybody_trains(fault: str) -> None:
    arrays, words = BROADCASTS[fault]
    strategy = C2M3(module=perceptron, calibration=inputs(), device="cpu")
    with pytest.raises(OptionError, match=words):
        begin(strategy, arrays)


def _without(record: ArrayRecord, name: str) -> ArrayRecord:
    return ArrayRecord({key: array for key, array in record.to_torch_state_dict().items() if key != name})


STRUCTURAL: dict[str, tuple[Callable[[ArrayRecord], ArrayRecord], dict[str, Any], str]] = {
    "a missing tensor": (lambda record: _without(record, "2.bias"), {}, "'2.bias' is missing"),
    "an unknown tensor": (
        lambda record: ArrayRecord(record.to_torch_state_dict() | {"more": torch.zeros(1)}),
        {},
        "'more' is not in the model",
    ),
    "another shape": (
        lambda record: ArrayRecord(record.to_torch_state_dict() | {"2.bias": torch.zeros(4)}),
        {},
        r"shape \(4,\), not \(3,\)",
    ),
    "another kind of numbers": (
        lambda record: ArrayRecord(record.to_torch_state_dict() | {"2.bias": torch.zeros(3, dtype=torch.long)}),
        {},
        "torch.int64, not torch.float32",
    ),
    "another key of the metric": (lambda record: record, {"num_examples": 3}, "'num_examples'; name another key"),
}


@pytest.mark.parametrize("fault", STRUCTURAL)
def test_a_fault_in_every_client_is_no_clients_fault(fault: str) -> None:
    change, metrics, words = STRUCTURAL[fault]
    kind = KINDS["plain"]
    module, strategy = built(kind)
    records = [change(kind.send(module.state_dict())) for _ in range(CLIENTS)]
    sent = messages(records, **metrics)
    if metrics:
        for message in sent:
            del next(iter(message.content.metric_records.values()))["num-examples"]
    with pytest.raises(InconsistentMessageReplies, match=words):
        strategy.aggregate_train(1, sent)
    # of a single client nobody can tell whose fault it is: the round is lost, the run goes on
    arrays, lost = built(kind)[1].aggregate_train(1, sent[:1])
    assert arrays is None
    assert lost is not None
    assert lost["c2m3-lost"] == 1


def test_rounds_that_are_lost_in_a_row_end_the_run() -> None:
    kind = KINDS["plain"]
    module, strategy = built(kind, max_lost_rounds=2)
    broken = messages([ArrayRecord({name: t / 0 for name, t in module.state_dict().items()})])
    good = messages(planted(kind, module, strategy))
    for server_round, (replies, lost) in enumerate([(broken, 1), (good, 0), (broken, 1)], 1):
        _, metrics = strategy.aggregate_train(server_round, replies)
        assert metrics is not None
        assert metrics["c2m3-lost"] == lost
    with pytest.raises(AggregationError, match=r"2 rounds in a row .* no reply can be merged"):
        strategy.aggregate_train(4, broken)


def test_a_merge_that_fails_for_the_modules_sake_ends_the_run() -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.limit = perceptron(), 1e6

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.net(x)
            if not torch.compiler.is_compiling() and float(self.net[0].weight.detach().abs().max()) > self.limit:
                raise RuntimeError("no such weights, please")
            return result

    strategy = C2M3(module=Choosy, calibration=inputs(), device="cpu")
    state = Choosy().state_dict()
    huge = [ArrayRecord({name: 1e7 * tensor for name, tensor in state.items()}) for _ in range(2)]
    with pytest.raises(RepairError, match="no such weights"):
        strategy.aggregate_train(1, messages(huge))


def test_nothing_to_train_is_quiet(flower_log: pytest.LogCaptureFixture) -> None:
    strategy = C2M3(0.0, module=perceptron, calibration=inputs(), device="cpu")
    flower_log.clear()
    assert list(strategy.configure_train(1, ArrayRecord(perceptron().state_dict()), ConfigRecord(), Grid())) == []  # type: ignore[arg-type]
    assert strategy.aggregate_train(1, []) == (None, None)
    assert not [record for record in flower_log.records if record.levelname == "WARNING"]


def test_positional_arguments_are_fedavgs() -> None:
    strategy = C2M3(0.5, 0.25, 3, 4, 5, "examples", module=perceptron, calibration=inputs(), device="cpu")
    assert (strategy.fraction_train, strategy.fraction_evaluate, strategy.min_available_nodes) == (0.5, 0.25, 5)
    assert strategy.weighted_by_key == "examples"


def test_networks_of_which_little_can_move_say_so(flower_log: pytest.LogCaptureFixture) -> None:
    C2M3(module=lambda: nn.Linear(6, 3), calibration=inputs(), device="cpu")
    assert "nothing can be aligned" in flower_log.text


def test_all_clients_broken_on_the_calibration_set_lose_the_round_only() -> None:
    kind = KINDS["plain"]
    module, strategy = built(kind)
    huge = ArrayRecord({name: torch.full_like(tensor, 1e30) for name, tensor in module.state_dict().items()})
    arrays, metrics = C2M3(module=perceptron, calibration=inputs(), device="cpu").aggregate_train(
        1, messages([huge, huge])
    )
    assert arrays is None
    assert metrics is not None
    assert metrics["c2m3-lost"] == 1
    assert issubclass(ClientError, ValueError)
    assert strategy is not None
