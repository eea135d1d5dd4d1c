"""Repair without data on the server: what clients send, what the server makes of it, and who is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor, nn

from c2m3_fl import C2M3, OptionError, aggregate
from c2m3_fl.activations import measure
from c2m3_fl.federation.client import MOMENTS_KEY, answer_moments, attach_moments
from c2m3_fl.guard import CANDIDATES
from c2m3_fl.repair import repair
from c2m3_fl.round import Clients
from c2m3_fl.symmetry import PermutationSpec

INPUTS = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
NODES = [11, 12, 13, 14]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


SPEC = PermutationSpec.from_module(network(), INPUTS[:2])
SITES = 4


def client(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: tensor * 1.5 for name, tensor in network().state_dict().items()}


CLIENTS = [client(seed) for seed in range(4)]
WEIGHTS = [10, 20, 30, 40]


Answer = Callable[[Message], Message | None]


def honest(message: Message) -> Message:
    return answer_moments(message, network(), INPUTS, device="cpu")


class Grid:
    """Answers queries; a node's own way of answering may be given."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.queries: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return NODES

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        self.queries += sent
        replies = [self.answers.get(f"n{m.metadata.dst_node_id}", honest)(m) for m in sent]
        return [reply for reply in replies if reply is not None]


def strategy(**options: Any) -> C2M3:
    settings = {"module": network, "spec": SPEC, "device": "cpu", "moments_from": "clients", "exchanges": SITES}
    return C2M3(**settings | options)


def play(
    server: C2M3, grid: Grid, clients: Iterable[int] = range(4), own: Callable[[int, RecordDict], None] | None = None
) -> tuple[dict[str, Tensor], MetricRecord]:
    """One round: the clients answer the training messages with their networks and what else is asked for."""
    replies = []
    for message in server.configure_train(3, ArrayRecord(CLIENTS[0]), ConfigRecord(), grid):  # type: ignore[arg-type]
        i = NODES.index(message.metadata.dst_node_id)
        if i not in clients:
            continue
        module = network()
        module.load_state_dict(CLIENTS[i])
        metrics = MetricRecord({"num-examples": WEIGHTS[i]})
        content = RecordDict({"arrays": ArrayRecord(CLIENTS[i]), "metrics": metrics})
        attach_moments(content, message, module, INPUTS, device="cpu")
        if own is not None:
            own(i, content)
        replies.append(Message(content, reply_to=message))
    arrays, found = server.aggregate_train(3, replies)
    assert arrays is not None
    assert found is not None
    return dict(arrays.to_torch_state_dict()), found


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.allclose(tensor, b[name], rtol=1e-3, atol=1e-4) for name, tensor in a.items())


def repaired_on_the_server(clients: Iterable[int] = range(4)) -> dict[str, Tensor]:
    chosen = list(clients)
    networks, weights = [CLIENTS[i] for i in chosen], [WEIGHTS[i] for i in chosen]
    return aggregate(
        network,
        networks,
        weights=weights,
        spec=SPEC,
        calibration=INPUTS,
        repair="repair-bounded",
        activations=0.0,
        guard=False,
        device="cpu",
    ).state_dict


def test_as_many_exchanges_as_sites_equal_the_repair_with_the_data() -> None:
    grid = Grid()
    merged, metrics = play(strategy(), grid)
    assert close(merged, repaired_on_the_server())
    assert len(grid.queries) == SITES * len(NODES)
    assert metrics["c2m3-measuring-clients"] == 4
    assert CANDIDATES[int(metrics["c2m3-chosen"])] == "aligned-repaired"  # type: ignore[arg-type]
    assert metrics["c2m3-repair-seconds"] > 0


def test_one_exchange_corrects_the_last_layer() -> None:
    merged, _ = play(strategy(exchanges=1), Grid())
    plain = aggregate(network, CLIENTS, weights=WEIGHTS, spec=SPEC, device="cpu")
    changed = {name for name, tensor in merged.items() if not torch.allclose(tensor, plain.state_dict[name])}
    assert changed == {"5.weight", "5.bias"}
    goal = sum(
        w * measure(network, c, INPUTS, device="cpu")["5"].mean for w, c in zip(WEIGHTS, CLIENTS, strict=True)
    ) / sum(WEIGHTS)
    torch.testing.assert_close(measure(network, merged, INPUTS, device="cpu")["5"].mean, goal, rtol=1e-4, atol=1e-5)


def test_the_spread_is_the_methods() -> None:
    pooled, _ = play(strategy(repair="repair-pooled"), Grid())
    plain = aggregate(network, CLIENTS, weights=WEIGHTS, spec=SPEC, device="cpu")
    expected = repair(
        network,
        plain.average,
        plain.alignment.apply(CLIENTS),
        INPUTS,
        weights=WEIGHTS,
        method="repair-pooled",
        device="cpu",
    )
    assert close(pooled, expected)


def test_nothing_but_moments_leaves_a_client() -> None:
    contents: list[RecordDict] = []
    grid = Grid(n11=lambda m: contents.append((reply := honest(m)).content) or reply)  # type: ignore[func-returns-value]
    play(strategy(), grid, own=lambda i, content: contents.append(content))
    sizes = {"0": 10, "2": 8, "3": 8, "5": 3}
    allowed = {f"{site}.{kind}": (size,) for site, size in sizes.items() for kind in ("mean", "variance")}
    allowed |= {f"{site}.count": () for site in sizes}
    for content in contents:
        assert set(content) <= {"arrays", "metrics", MOMENTS_KEY}
        assert {name: array.shape for name, array in content[MOMENTS_KEY].items()} == allowed
    query = grid.queries[0]
    assert query.metadata.message_type == "query.c2m3_moments"
    assert query.content["config"]["server-round"] == 3


def test_a_client_sends_no_moments_unasked() -> None:
    asked = strategy(moments_from="server").configure_train(1, ArrayRecord(CLIENTS[0]), ConfigRecord(), Grid())  # type: ignore[arg-type]
    content = RecordDict()
    attach_moments(content, next(iter(asked)), network(), INPUTS)
    assert not content


def _error(message: Message) -> Message:
    return Message(Error(code=0, reason="out of memory"), reply_to=message)


def _moments(change: Callable[[dict[str, np.ndarray[Any, Any]]], None]) -> Answer:
    def answer(message: Message) -> Message:
        content = honest(message).content
        arrays = {name: array.numpy().copy() for name, array in content[MOMENTS_KEY].items()}
        change(arrays)
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return Message(RecordDict({MOMENTS_KEY: record}), reply_to=message)

    return answer


def _put(name: str, value: Any) -> Callable[[dict[str, np.ndarray[Any, Any]]], None]:
    return lambda arrays: arrays.__setitem__(name, np.asarray(value, dtype=np.float64))


FAULTS: dict[str, Answer] = {
    "silent": lambda message: None,
    "error": _error,
    "empty": lambda message: Message(RecordDict(), reply_to=message),
    "no arrays": _moments(lambda arrays: arrays.clear()),
    "nan": _moments(_put("0.mean", np.full(10, np.nan))),
    "negative variance": _moments(_put("5.variance", -np.ones(3))),
    "count of zero": _moments(_put("5.count", 0)),
    "other shape": _moments(_put("5.mean", np.zeros(2))),
    "unknown array": _moments(_put("5.median", np.zeros(3))),
    "missing layer": _moments(lambda arrays: [arrays.pop(f"5.{k}") for k in ("count", "mean", "variance")] and None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_that_does_not_measure_is_left_out_of_the_repair(
    fault: str, flower_log: pytest.LogCaptureFixture
) -> None:
    merged, metrics = play(strategy(exchanges=1), Grid(n12=FAULTS[fault]))
    without, _ = play(strategy(exchanges=1), Grid(n12=FAULTS["silent"]))
    assert all(torch.equal(tensor, without[name]) for name, tensor in merged.items())
    assert metrics["c2m3-measuring-clients"] == 3
    assert "node 12" in flower_log.text


def test_own_moments_that_are_missing_or_nonsense_leave_a_client_out() -> None:
    def drop(i: int, content: RecordDict) -> None:
        if i == 1:
            del content[MOMENTS_KEY]
        if i == 2:
            content[MOMENTS_KEY] = ArrayRecord({"9.mean": Array(np.zeros(3))})

    _, metrics = play(strategy(exchanges=1), Grid(), own=drop)
    assert (metrics["c2m3-clients"], metrics["c2m3-measuring-clients"]) == (4, 2)


def _said(
    change: Callable[[dict[str, np.ndarray[Any, Any]]], None], liar: int = 1
) -> Callable[[int, RecordDict], None]:
    def own(i: int, content: RecordDict) -> None:
        if i == liar:
            arrays = {name: array.numpy().copy() for name, array in content[MOMENTS_KEY].items()}
            change(arrays)
            content[MOMENTS_KEY] = ArrayRecord({name: Array(array) for name, array in arrays.items()})

    return own


LIES: dict[str, Callable[[dict[str, np.ndarray[Any, Any]]], None]] = {
    "variance of 1e30": _put("5.variance", np.full(3, 1e30)),
    "variance of 1e6": _put("5.variance", [1.0, 1e6, 1.0]),
    "a mean moved by 100": lambda arrays: arrays["5.mean"].__setitem__(0, arrays["5.mean"][0] + 100),
    "a mean of 1e300": _put("5.mean", np.full(3, 1e300)),
}


@pytest.mark.parametrize("robust", [None, "exclude"])
@pytest.mark.parametrize("lie", LIES)
def test_moments_that_the_others_belie_are_left_out(
    lie: str, robust: str | None, flower_log: pytest.LogCaptureFixture
) -> None:
    silent, _ = play(strategy(exchanges=1, robust=robust), Grid(n12=FAULTS["silent"]))
    for grid, own in ((Grid(n12=_moments(LIES[lie])), None), (Grid(), _said(LIES[lie]))):
        merged, metrics = play(strategy(exchanges=1, robust=robust), grid, own=own)
        assert all(torch.equal(tensor, silent[name]) for name, tensor in merged.items())
        assert metrics["c2m3-measuring-clients"] == 3
        assert "node 12 takes no part in the repair: at the layer 5 it reports an impossible" in flower_log.text
        flower_log.clear()


@pytest.mark.parametrize("lie", LIES)
def test_of_two_clients_neither_can_ruin_the_network(lie: str) -> None:
    merged, _ = play(strategy(exchanges=1), Grid(n12=_moments(LIES[lie])), clients=(0, 1))
    assert max(float(tensor.abs().max()) for tensor in merged.values()) < 20


class Normalised(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("clients", [(0, 1), (0, 1, 2, 3)])
def test_lies_about_batch_norm_do_not_make_the_network_nan(clients: tuple[int, ...]) -> None:
    spec = PermutationSpec.from_module(Normalised(), INPUTS[:2])
    torch.manual_seed(0)
    networks = [Normalised() for _ in NODES]
    server = strategy(module=Normalised, spec=spec, exchanges=2)
    lie = _put("1.variance", np.full(8, 1e300))
    replies = []
    for message in server.configure_train(1, ArrayRecord(networks[0].state_dict()), ConfigRecord(), Grid()):  # type: ignore[arg-type]
        i = NODES.index(message.metadata.dst_node_id)
        content = RecordDict(
            {"arrays": ArrayRecord(networks[i].state_dict()), "metrics": MetricRecord({"num-examples": 1})}
        )
        attach_moments(content, message, networks[i], INPUTS, device="cpu")
        if i in clients:
            _said(lie)(i, content)
            replies.append(Message(content, reply_to=message))
    server._grid = Grid(  # type: ignore[assignment]
        **{f"n{node}": lambda m: answer_moments(m, Normalised(), INPUTS, device="cpu") for node in NODES}
    )
    arrays, _ = server.aggregate_train(1, replies)
    assert arrays is not None
    merged = arrays.to_torch_state_dict()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.values())
    assert float(merged["1.running_var"].max()) < 1e3


def test_a_huge_weight_is_capped_under_robust() -> None:
    def claims(i: int, content: RecordDict) -> None:
        if i == 1:
            content["metrics"] = MetricRecord({"num-examples": 10**12})

    tenfold = {**dict(enumerate(WEIGHTS)), 1: 10 * 30}
    merged, _ = play(strategy(exchanges=1, robust="exclude"), Grid(), own=claims)
    expected, _ = play(
        strategy(exchanges=1, robust="exclude"),
        Grid(),
        own=lambda i, content: content.__setitem__("metrics", MetricRecord({"num-examples": tenfold[i]})),
    )
    assert close(merged, expected)


def test_a_personal_head_stays_at_home_and_the_last_shared_layer_is_corrected() -> None:
    shared = [name for name in CLIENTS[0] if not name.startswith("5.")]

    def answer(message: Message) -> Message:
        module = network()
        module.load_state_dict(CLIENTS[NODES.index(message.metadata.dst_node_id)])
        return answer_moments(message, module, INPUTS, device="cpu")

    grid = Grid(**{f"n{node}": answer for node in NODES})
    server = strategy(exchanges=1)
    start = ArrayRecord({name: CLIENTS[0][name] for name in shared})
    replies = []
    for message in server.configure_train(1, start, ConfigRecord(), grid):  # type: ignore[arg-type]
        i = NODES.index(message.metadata.dst_node_id)
        module = network()
        module.load_state_dict(CLIENTS[i])
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: CLIENTS[i][name] for name in shared}),
                "metrics": MetricRecord({"num-examples": WEIGHTS[i]}),
            }
        )
        attach_moments(content, message, module, INPUTS, device="cpu")
        replies.append(Message(content, reply_to=message))
    arrays, metrics = server.aggregate_train(1, replies)
    assert arrays is not None
    assert metrics is not None
    assert metrics["c2m3-measuring-clients"] == 4
    assert list(arrays) == shared
    assert CANDIDATES[int(metrics["c2m3-chosen"])].endswith("repaired")  # type: ignore[arg-type]


def test_if_nobody_measures_the_network_stays_as_it_is(flower_log: pytest.LogCaptureFixture) -> None:
    merged, metrics = play(strategy(), Grid(**{f"n{node}": _error for node in NODES}))
    order = Clients.of(CLIENTS, WEIGHTS).positions  # the strategy's: sums depend on it in their last bits
    networks, weights = [CLIENTS[i] for i in order], [WEIGHTS[i] for i in order]
    plain = aggregate(network, networks, weights=weights, spec=SPEC, device="cpu")
    assert all(torch.equal(tensor, plain.state_dict[name]) for name, tensor in merged.items())
    assert CANDIDATES[int(metrics["c2m3-chosen"])] == "aligned"  # type: ignore[arg-type]
    assert "No client measured the merged network" in flower_log.text


def test_absurd_moments_do_not_ruin_the_network(flower_log: pytest.LogCaptureFixture) -> None:
    def absurd(i: int, content: RecordDict) -> None:
        arrays = {name: array.numpy().copy() for name, array in content[MOMENTS_KEY].items()}
        arrays["5.mean"] = np.full(3, 1e30)
        content[MOMENTS_KEY] = ArrayRecord({name: Array(array) for name, array in arrays.items()})

    merged, _ = play(strategy(exchanges=1), Grid(), own=absurd)
    assert max(float(tensor.abs().max()) for tensor in merged.values()) < 100
    assert "stays as it is" in flower_log.text


def test_options_that_contradict_each_other_are_an_error() -> None:
    for method in ("recalibrate", "least-squares", "least-squares-bounded"):
        with pytest.raises(OptionError, match="needs data on the server"):
            strategy(repair=method)
    with pytest.raises(ValueError, match="cannot come from 'nowhere'"):
        strategy(moments_from="nowhere")
    with pytest.raises(ValueError, match="at least 1"):
        strategy(exchanges=0)


def test_training_messages_are_not_changed_for_others() -> None:
    (message, *_) = strategy(moments_from="server").configure_train(
        1,
        ArrayRecord(CLIENTS[0]),
        ConfigRecord(),
        Grid(),  # type: ignore[arg-type]
    )
    assert message.metadata.message_type == MessageType.TRAIN
    assert MOMENTS_KEY not in message.content["config"]
