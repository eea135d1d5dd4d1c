"""The strategy: what it merges, what it leaves out, what it reports."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor, nn

from c2m3_fl import C2M3, PermutationSpec, RepairError, SpecError, aggregate, average

INPUTS = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Has all that a state dict can hold: weights, running statistics and an integer counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.relu(self.norm(self.first(x))))
        return logits


SPEC = PermutationSpec.from_axes(
    groups={"hidden": 8},
    tensors={
        "first.weight": ("hidden", 6),
        "first.bias": ("hidden",),
        "norm.weight": ("hidden",),
        "norm.bias": ("hidden",),
        "norm.running_mean": ("hidden",),
        "norm.running_var": ("hidden",),
        "norm.num_batches_tracked": (),
        "last.weight": (3, "hidden"),
        "last.bias": (3,),
    },
    carried=["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"],
)


def client(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    network = Network()
    with torch.no_grad():
        network(torch.randn(20, 6))  # running statistics of its own
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def reply(node: int, content: RecordDict | None) -> Message:
    asked = Message(RecordDict(), node, MessageType.TRAIN)
    if content is None:
        return Message(Error(code=0, reason="out of memory"), reply_to=asked)
    return Message(content, reply_to=asked)


def trained(node: int, state_dict: dict[str, Tensor], examples: float = 10, **metrics: float) -> Message:
    record = MetricRecord({"num-examples": examples, **metrics})
    return reply(node, RecordDict({"arrays": ArrayRecord(state_dict), "metrics": record}))


def strategy(**options: object) -> C2M3:
    settings = {"module": Network, "calibration": INPUTS, "spec": SPEC, "device": "cpu"} | options
    return C2M3(**settings)  # type: ignore[arg-type]


def content(arrays: ArrayRecord | None) -> dict[str, Tensor]:
    assert arrays is not None
    return dict(arrays.to_torch_state_dict())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


CLIENTS = [client(seed) for seed in range(4)]
EXAMPLES = [10, 20, 30, 20]


def replies(order: Sequence[int] = range(4)) -> list[Message]:
    return [trained(100 + i, CLIENTS[i], EXAMPLES[i], loss=float(i)) for i in order]


def test_a_round_is_the_aggregation_of_the_clients() -> None:
    arrays, metrics = strategy().aggregate_train(1, replies())
    expected = aggregate(
        Network,
        CLIENTS,
        weights=EXAMPLES,
        spec=SPEC,
        calibration=INPUTS,
        repair="least-squares-bounded",
        device="cpu",
    )
    merged = content(arrays)
    for name, tensor in expected.state_dict.items():
        torch.testing.assert_close(merged[name], tensor)
        assert merged[name].dtype == CLIENTS[0][name].dtype
    assert list(merged) == list(CLIENTS[0])
    assert metrics is not None
    assert metrics["c2m3-objective"] == pytest.approx(expected.alignment.objective)
    assert metrics["c2m3-objective"] > metrics["c2m3-objective-before"]
    assert 0 < metrics["c2m3-moved"] <= 1
    assert metrics["c2m3-iterations"] >= 1
    assert metrics["c2m3-matching-seconds"] > 0
    assert metrics["c2m3-repair-seconds"] > 0
    assert (metrics["c2m3-clients"], metrics["c2m3-left-out"]) == (4, 0)
    assert metrics["loss"] == pytest.approx(sum(w * i for i, w in enumerate(EXAMPLES)) / sum(EXAMPLES))


def test_order_of_replies_does_not_matter_to_the_bit() -> None:
    first = content(strategy().aggregate_train(1, replies())[0])
    for order in itertools.permutations(range(4)):
        assert equal(content(strategy().aggregate_train(1, replies(order))[0]), first)


def test_identity_without_repair_is_federated_averaging() -> None:
    arrays, _ = strategy(matcher="identity", repair=None).aggregate_train(1, replies())
    merged, expected = content(arrays), average(CLIENTS, EXAMPLES)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor)


def test_without_calibration_there_is_no_repair() -> None:
    arrays, metrics = strategy(calibration=None).aggregate_train(1, replies())
    expected = aggregate(Network, CLIENTS, weights=EXAMPLES, spec=SPEC, device="cpu").average
    for name, tensor in content(arrays).items():
        torch.testing.assert_close(tensor, expected[name])
    assert metrics is not None
    assert metrics["c2m3-repair-seconds"] == 0


BROKEN = {
    "nan": (CLIENTS[1] | {"last.bias": torch.full((3,), float("nan"))}, 10),
    "infinite": (CLIENTS[1] | {"first.weight": torch.full((8, 6), float("inf"))}, 10),
    "shape": (CLIENTS[1] | {"last.bias": torch.zeros(1)}, 10),
    "dtype": (CLIENTS[1] | {"last.bias": torch.zeros(3, dtype=torch.long)}, 10),
    "counter dtype": (CLIENTS[1] | {"norm.num_batches_tracked": torch.tensor(1.0)}, 10),
    "missing": ({name: tensor for name, tensor in CLIENTS[1].items() if name != "last.bias"}, 10),
    "extra": (CLIENTS[1] | {"more": torch.zeros(1)}, 10),
    "zero weight": (CLIENTS[1], 0),
    "negative weight": (CLIENTS[1], -3),
    "nan weight": (CLIENTS[1], float("nan")),
    "infinite weight": (CLIENTS[1], float("inf")),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_client_is_left_out_named_and_counted(fault: str, flower_log: pytest.LogCaptureFixture) -> None:
    state_dict, examples = BROKEN[fault]
    good = [trained(100 + i, CLIENTS[i], EXAMPLES[i]) for i in (0, 2, 3)]
    expected = content(strategy().aggregate_train(1, good)[0])
    bad = trained(666, state_dict, examples)
    arrays, metrics = strategy().aggregate_train(1, [good[0], bad, *good[1:]])
    assert equal(content(arrays), expected)
    assert metrics is not None
    assert (metrics["c2m3-clients"], metrics["c2m3-left-out"]) == (3, 1)
    assert "Left out node 666" in flower_log.text


@pytest.mark.parametrize(
    "bad",
    [
        None,
        RecordDict(),
        RecordDict({"arrays": ArrayRecord(CLIENTS[1])}),
        RecordDict({"metrics": MetricRecord({"num-examples": 1})}),
        RecordDict({"arrays": ArrayRecord(CLIENTS[1]), "metrics": MetricRecord({"examples": 1})}),
        RecordDict({"arrays": ArrayRecord(CLIENTS[1]), "metrics": MetricRecord({"num-examples": [1, 2]})}),
        RecordDict(
            {"a": ArrayRecord(CLIENTS[1]), "b": ArrayRecord(CLIENTS[1]), "metrics": MetricRecord({"num-examples": 1})}
        ),
    ],
    ids=["error", "empty", "no metrics", "no arrays", "no weight", "list of weights", "two array records"],
)
def test_a_malformed_reply_costs_only_itself(bad: RecordDict | None) -> None:
    good = [trained(100 + i, CLIENTS[i], EXAMPLES[i]) for i in (0, 2, 3)]
    expected = content(strategy().aggregate_train(1, good)[0])
    arrays, metrics = strategy().aggregate_train(1, [reply(666, bad), *good])
    assert equal(content(arrays), expected)
    assert metrics is not None
    assert metrics["c2m3-left-out"] == 1


def test_if_nobody_is_left_the_global_model_stays(flower_log: pytest.LogCaptureFixture) -> None:
    for none_usable in ([reply(1, None)], [trained(1, BROKEN["nan"][0]), reply(2, None)]):
        arrays, metrics = strategy().aggregate_train(3, none_usable)
        assert arrays is None
        assert metrics is not None
        assert (metrics["c2m3-clients"], metrics["c2m3-left-out"]) == (0, len(none_usable))
    assert "Round 3 is lost, the global model stays: no reply can be merged" in flower_log.text


def test_a_failing_aggregation_costs_the_round_not_the_run(flower_log: pytest.LogCaptureFixture) -> None:
    class Broken:
        def match(self, problem: object) -> None:
            raise RuntimeError("CUDA out of memory")

    arrays, metrics = strategy(matcher=Broken()).aggregate_train(5, replies())
    assert arrays is None
    assert metrics is not None
    assert metrics["loss"] > 0
    assert "Round 5 is lost" in flower_log.text
    assert "CUDA out of memory" in flower_log.text


def test_metrics_that_only_some_clients_send_do_not_stop_the_round() -> None:
    mixed = [trained(1, CLIENTS[0], accuracy=0.5, loss=1.0), trained(2, CLIENTS[1], loss=3.0)]
    _, metrics = strategy().aggregate_train(1, mixed)
    assert metrics is not None
    assert metrics["loss"] == pytest.approx(2.0)
    assert "accuracy" not in metrics


def test_a_client_is_named_by_its_own_id_which_is_not_averaged(flower_log: pytest.LogCaptureFixture) -> None:
    bad = reply(
        7,
        RecordDict(
            {
                "arrays": ArrayRecord(BROKEN["nan"][0]),
                "metrics": MetricRecord({"num-examples": 1, "client-id": 42}),
            }
        ),
    )
    good = [
        reply(
            i,
            RecordDict(
                {
                    "arrays": ArrayRecord(CLIENTS[i]),
                    "metrics": MetricRecord({"num-examples": 1, "client-id": i}),
                }
            ),
        )
        for i in range(2)
    ]
    _, metrics = strategy().aggregate_train(1, [*good, bad])
    assert "Left out client 42 (node 7)" in flower_log.text
    assert metrics is not None
    assert "client-id" not in metrics


def test_one_client_comes_back_as_it_is() -> None:
    arrays, _ = strategy(repair=None).aggregate_train(1, [trained(1, CLIENTS[0])])
    assert equal(content(arrays), CLIENTS[0])


def test_construction_says_what_is_wrong() -> None:
    with pytest.raises(SpecError, match=r"has 'first\.bias'.*which the spec does not list"):
        strategy(spec=PermutationSpec.from_axes({"g": 8}, {"first.weight": ("g", 6)}), module=Network())
    with pytest.raises(SpecError, match="give a spec, or calibration inputs"):
        C2M3(module=Network)
    with pytest.raises(RepairError, match="empty"):
        strategy(calibration=[])
    with pytest.raises(ValueError, match="no matcher 'hungarian'"):
        strategy(matcher="hungarian")
    with pytest.raises(ValueError, match="no repair 'glue'"):
        strategy(repair="glue")
    with pytest.raises(ValueError, match="'tpu9' is no device"):
        strategy(device="tpu9")


def test_the_module_is_traced_where_no_spec_is_given() -> None:
    found = C2M3(module=Network, calibration=INPUTS, device="cpu")
    assert list(found.spec.groups.values()) == [8]
    assert equal(content(found.aggregate_train(1, replies())[0]), content(strategy().aggregate_train(1, replies())[0]))


def test_summary_tells_the_settings_in_flowers_style(flower_log: pytest.LogCaptureFixture) -> None:
    with flower_log.at_level(logging.INFO, logger="flwr"):
        strategy(min_train_nodes=5).summary()
    text = flower_log.text
    for piece in (
        "C2M3 settings",
        "Permutation groups: 1 (8 neurons)",
        "auto (calibration inputs: 32)",
        "train (5)",
    ):
        assert piece in text
    assert text.index("C2M3 settings") < text.index("Sampling")


def test_what_is_flowers_stays_flowers() -> None:
    class Grid:
        def get_node_ids(self) -> list[int]:
            return [1, 2, 3]

    found = strategy(fraction_train=1.0, arrayrecord_key="weights")
    messages = list(
        found.configure_train(2, ArrayRecord(CLIENTS[0]), ConfigRecord(), Grid())  # type: ignore[arg-type]
    )
    assert len(messages) == 3
    assert "weights" in messages[0].content
    assert messages[0].content["config"]["server-round"] == 2
