"""Everything that a client may do wrong, as a table: the tests run it, the documentation shows it.

``python -m tests.federation.faults docs/faults.md`` writes the page anew.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, MetricRecord, RecordDict
from sklearn.datasets import load_digits
from torch import Tensor, nn

from c2m3_fl import C2M3
from c2m3_fl.federation import private
from c2m3_fl.symmetry import PermutationSpec

HONEST = 5
FAULTY_NODE = 666
NAN, INF = float("nan"), float("inf")

StateDict = dict[str, Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


SPEC = PermutationSpec.from_module(network(), torch.zeros(2, 64))


@dataclass(frozen=True)
class Scene:
    """What a round begins with: the broadcast network, honest clients, and one that may go wrong."""

    broadcast: StateDict
    honest: list[StateDict]
    own: StateDict
    flipped: StateDict
    calibration: Tensor
    inputs: Tensor
    labels: Tensor

    def accuracy(self, state_dict: StateDict) -> float:
        module = network()
        module.load_state_dict(state_dict)
        with torch.no_grad():
            return float((module(self.inputs).argmax(1) == self.labels).double().mean())


def _trained(start: StateDict, inputs: Tensor, labels: Tensor, seed: int, epochs: int) -> StateDict:
    torch.manual_seed(seed)
    module = network()
    module.load_state_dict(start)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@lru_cache(maxsize=1)
def scene() -> Scene:
    """Real digits (scikit-learn's), split among the clients; the broadcast network has seen an epoch of them."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    inputs = torch.from_numpy(digits.data).float()[order] / 16
    labels = torch.from_numpy(digits.target).long()[order]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = _trained(dict(network().state_dict()), inputs[:200], labels[:200], 1, 5)
        parts = [slice(200 + 150 * i, 350 + 150 * i) for i in range(HONEST + 1)]
        clients = [_trained(start, inputs[part], labels[part], 2 + i, 5) for i, part in enumerate(parts)]
        flipped = _trained(start, inputs[parts[-1]], 9 - labels[parts[-1]], 20, 20)
    return Scene(start, clients[:-1], clients[-1], flipped, inputs[:128], inputs[1100:], labels[1100:])


def identify() -> None:
    """Messages can only be made inside a run."""
    private.act_as(1)


def reply(node: int, state_dict: StateDict, examples: Any = 150, **metrics: Any) -> Message:
    record = MetricRecord({"num-examples": examples, "loss": 1.0, **metrics})
    return answer(node, RecordDict({"arrays": ArrayRecord(state_dict), "metrics": record}))


def answer(node: int, content: RecordDict) -> Message:
    return Message(content, reply_to=Message(RecordDict(), node, MessageType.TRAIN))


def honest_replies() -> list[Message]:
    return [reply(100 + i, client) for i, client in enumerate(scene().honest)]


def strategy(**options: Any) -> C2M3:
    return C2M3(module=network, spec=SPEC, calibration=scene().calibration, device="cpu", **options)


@dataclass(frozen=True)
class Fault:
    """A way to go wrong.

    Attributes
    ----------
    what
        What the client does.
    replies
        Its replies.
    left_out
        How many of them are left out.
    reason
        Words of the log that say why; the outcome where nothing is left out.
    robust
        Whether it takes ``robust="exclude"``.
    """

    what: str
    replies: Callable[[], list[Message]]
    left_out: int
    reason: str
    robust: bool = False

    def options(self) -> dict[str, Any]:
        return {"robust": "exclude"} if self.robust else {}


def _tensors(change: Callable[[StateDict], StateDict], what: str, reason: str, *, robust: bool = False) -> Fault:
    return Fault(what, lambda: [reply(FAULTY_NODE, change(dict(scene().own)))], 1, reason, robust)


def _all(change: Callable[[str, Tensor], Tensor]) -> Callable[[StateDict], StateDict]:
    return lambda own: {name: change(name, tensor) for name, tensor in own.items()}


def _named(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[StateDict], StateDict]:
    return lambda own: own | {name: value(own[name])}


def _one(value: Callable[[Tensor], Tensor]) -> Callable[[StateDict], StateDict]:
    return lambda own: own | {"2.weight": value(own["2.weight"])}


def _weight(value: Any, what: str, reason: str = "not a positive number") -> Fault:
    return Fault(what, lambda: [reply(FAULTY_NODE, scene().own, value)], 1, reason)


def _content(make: Callable[[ArrayRecord, MetricRecord], dict[str, Any]], what: str, reason: str) -> Fault:
    def replies() -> list[Message]:
        records = make(ArrayRecord(scene().own), MetricRecord({"num-examples": 150, "loss": 1.0}))
        return [answer(FAULTY_NODE, RecordDict(records))]

    return Fault(what, replies, 1, reason)


def _error() -> list[Message]:
    asked = Message(RecordDict(), FAULTY_NODE, MessageType.TRAIN)
    return [Message(Error(code=0, reason="out of memory"), reply_to=asked)]


def _undecodable(arrays: ArrayRecord, metrics: MetricRecord) -> dict[str, Any]:
    arrays["2.weight"] = Array(dtype="float32", shape=(32, 48), stype="numpy.ndarray", data=b"not an array")
    return {"arrays": arrays, "metrics": metrics}


def _truncated(arrays: ArrayRecord, metrics: MetricRecord) -> dict[str, Any]:
    whole = arrays["2.weight"]
    arrays["2.weight"] = Array(dtype="float32", shape=(32, 48), stype="numpy.ndarray", data=whole.data[:-40])
    return {"arrays": arrays, "metrics": metrics}


def _pickled(arrays: ArrayRecord, metrics: MetricRecord) -> dict[str, Any]:
    stream = io.BytesIO()
    np.save(stream, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    arrays["2.weight"] = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=stream.getvalue())
    return {"arrays": arrays, "metrics": metrics}


def _with_moments() -> Message:
    metrics = MetricRecord({"num-examples": 150, "loss": 1.0})
    nonsense = ArrayRecord({"x": Array(np.zeros(2))})
    return answer(
        FAULTY_NODE, RecordDict({"arrays": ArrayRecord(scene().own), "metrics": metrics, "c2m3-moments": nonsense})
    )


def _noise(name: str, tensor: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return tensor + 3 * tensor.std() * torch.randn(tensor.shape, generator=generator)


def _random() -> StateDict:
    with torch.random.fork_rng():
        torch.manual_seed(99)
        return {name: 3 * tensor for name, tensor in network().state_dict().items()}


def _colluding() -> list[Message]:
    boosted = {name: tensor * 4 for name, tensor in scene().own.items()}
    return [reply(FAULTY_NODE, boosted), reply(FAULTY_NODE + 1, boosted)]


FAULTS: dict[str, Fault] = {
    "error": Fault("answers with an error", _error, 1, "out of memory"),
    "never": Fault("never answers, or after the round's timeout", lambda: [], 0, "counted as `c2m3-silent`"),
    "twice": Fault("answers twice", lambda: [reply(FAULTY_NODE, scene().own)] * 2, 1, "more than once"),
    "twice, differently": Fault(
        "answers twice, with different networks",
        lambda: [reply(FAULTY_NODE, scene().own), reply(FAULTY_NODE, scene().honest[0])],
        1,
        "more than once",
    ),
    "nan": _tensors(_one(lambda t: torch.full_like(t, NAN)), "sends NaN", "NaN or infinite"),
    "infinite": _tensors(_one(lambda t: torch.full_like(t, INF)), "sends infinity", "NaN or infinite"),
    "huge": _tensors(_all(lambda _, t: torch.full_like(t, 1e30)), "sends 1e30 everywhere", "has norm"),
    "one huge entry": _tensors(
        _one(lambda t: t.flatten().index_fill(0, torch.tensor([7]), 1e30).view_as(t)),
        "sends one entry of 1e30",
        "has norm",
    ),
    "zeros": _tensors(_all(lambda _, t: torch.zeros_like(t)), "sends zeros", "smaller than a"),
    "shape": _tensors(_one(lambda t: t[:, :5].clone()), "sends an array of another shape", "has shape (32, 5)"),
    "broadcastable shape": _tensors(
        _one(lambda t: t[:, :1].clone()), "sends a shape that NumPy would broadcast silently", "has shape (32, 1)"
    ),
    "double": Fault(
        "sends float64 for float32",
        lambda: [reply(FAULTY_NODE, {name: tensor.double() for name, tensor in scene().own.items()})],
        0,
        "merged; converted to what is broadcast",
    ),
    "integer": _tensors(_one(lambda t: t.long()), "sends integers for float32", "is of torch.int64"),
    "missing": _tensors(
        lambda own: {name: tensor for name, tensor in own.items() if name != "2.weight"},
        "leaves an array out",
        "missing",
    ),
    "extra": _tensors(lambda own: own | {"more": torch.zeros(2)}, "sends an array too many", "is not in the model"),
    "renamed": _tensors(
        lambda own: {("x." if name == "2.bias" else "") + name: tensor for name, tensor in own.items()},
        "renames an array",
        "missing",
    ),
    "undecodable": _content(_undecodable, "sends bytes that are no array", "cannot be read"),
    "no arrays": _content(lambda a, m: {"metrics": m}, "sends no arrays", "0 ArrayRecords"),
    "two array records": _content(
        lambda a, m: {"a": a, "b": a, "metrics": m}, "sends two ArrayRecords", "2 ArrayRecords"
    ),
    "no metrics": _content(lambda a, m: {"arrays": a}, "sends no metrics", "0 MetricRecords"),
    "two metric records": _content(
        lambda a, m: {"arrays": a, "m": m, "n": m}, "sends two MetricRecords", "2 MetricRecords"
    ),
    "empty": _content(lambda a, m: {}, "sends an empty reply", "0 MetricRecords"),
    "no weight": _content(
        lambda a, m: {"arrays": a, "metrics": MetricRecord({"loss": 1.0})},
        "does not say its number of examples",
        "sends no metric",
    ),
    "weight of zero": _weight(0, "claims 0 examples"),
    "negative weight": _weight(-5, "claims -5 examples"),
    "nan weight": _weight(NAN, "claims NaN examples"),
    "infinite weight": _weight(INF, "claims infinitely many examples"),
    "list as weight": _weight([1, 2], "sends a list for its number of examples"),
    "other metrics": Fault(
        "sends a metric that nobody else does, and a list for a number",
        lambda: [reply(FAULTY_NODE, scene().own, loss=[1.0, 2.0], own=3.0)],
        0,
        "merged; the metrics in question are not aggregated",
    ),
    "broadcast sent back": Fault(
        "does not train and sends the broadcast network back",
        lambda: [reply(FAULTY_NODE, scene().broadcast)],
        0,
        "merged; indistinguishable from a client without data",
    ),
    "permuted": Fault(
        "holds its neurons in another order",
        lambda: [reply(FAULTY_NODE, SPEC.apply(scene().own, SPEC.random(torch.Generator().manual_seed(1))))],
        0,
        "merged; the matching puts them back",
    ),
    "diverged": _tensors(
        _all(lambda _, t: 10 * t),
        "sends a network ten times too large, as after training that diverged",
        "times the usual",
    ),
    "fifty times": _tensors(_all(lambda _, t: 50 * t), "sends a network fifty times too large", "times the usual"),
    "head": _tensors(
        _named("4.weight", lambda t: 1000 * t), "sends a classifier a thousand times too large", "tensor '4.weight'"
    ),
    "middle layer": _tensors(_one(lambda t: 100 * t), "sends one layer a hundred times too large", "tensor '2.weight'"),
    "bias": _tensors(
        _named("4.bias", lambda t: t + 100 * (torch.arange(10) == 0)), "adds 100 to an output's bias", "tensor '4.bias'"
    ),
    "hidden bias": _tensors(_named("0.bias", lambda t: t + 100), "adds 100 to hidden biases", "tensor '0.bias'"),
    "one entry": _tensors(
        _named("0.weight", lambda t: t + 1e4 * (torch.arange(t.numel()).view_as(t) == 0)),
        "adds 1e4 to one weight",
        "tensor '0.weight'",
    ),
    "one nan": _tensors(
        _named("0.bias", lambda t: torch.where(torch.arange(len(t)) == 3, NAN, t)),
        "sends a single NaN",
        "NaN or infinite",
    ),
    "minus infinity": _tensors(_one(lambda t: torch.full_like(t, -INF)), "sends minus infinity", "NaN or infinite"),
    "largest float": _tensors(_one(lambda t: torch.full_like(t, 3e38)), "sends the largest floats", "has norm"),
    "nearly zeros": _tensors(_all(lambda _, t: 1e-8 * t), "sends a network of 1e-8", "smaller than a"),
    "half": Fault(
        "sends float16 for float32",
        lambda: [reply(FAULTY_NODE, {name: tensor.half() for name, tensor in scene().own.items()})],
        0,
        "merged; converted to what is broadcast",
    ),
    "complex": _tensors(_one(lambda t: t.to(torch.complex64)), "sends complex numbers", "is of torch.complex64"),
    "booleans": _tensors(_one(lambda t: t > 0), "sends booleans", "is of torch.bool"),
    "transposed": _tensors(_one(lambda t: t.T.contiguous()), "transposes a matrix", "has shape (48, 32)"),
    "flattened": _tensors(_one(lambda t: t.flatten()), "flattens a matrix", "has shape (1536,)"),
    "scalar": _tensors(_one(lambda t: t[0, 0]), "sends a scalar for a matrix", "has shape ()"),
    "no rows": _tensors(_one(lambda t: t[:0]), "sends an empty matrix", "has shape (0, 48)"),
    "another axis": _tensors(_one(lambda t: t[None]), "adds an axis", "has shape (1, 32, 48)"),
    "reversed": Fault(
        "sends its arrays in another order",
        lambda: [reply(FAULTY_NODE, dict(reversed(scene().own.items())))],
        0,
        "merged; arrays go by their names",
    ),
    "nothing but a bias": _tensors(lambda own: {"4.bias": own["4.bias"]}, "sends a bias and nothing else", "missing"),
    "three answers": Fault(
        "answers three times",
        lambda: [reply(FAULTY_NODE, scene().own), *[reply(FAULTY_NODE, scene().honest[0])] * 2],
        2,
        "more than once",
    ),
    "truncated": _content(_truncated, "sends an array that is cut off", "cannot be read"),
    "pickle": _content(_pickled, "sends an array of Python objects", "cannot be read"),
    "moments only": _content(lambda a, m: {"c2m3-moments": a, "metrics": m}, "sends moments only", "0 ArrayRecords"),
    "nonsense moments": Fault(
        "sends unasked moments that make no sense",
        lambda: [_with_moments()],
        0,
        "merged; the moments are ignored",
    ),
    "smallest weight": Fault(
        "claims 5e-324 examples", lambda: [reply(FAULTY_NODE, scene().own, 5e-324)], 0, "merged; it counts for nothing"
    ),
    "minus infinite weight": _weight(-INF, "claims minus infinitely many examples"),
    "empty list as weight": _weight([], "sends an empty list for its number of examples"),
    "million": _weight([1.0] * 10**6, "sends a million numbers for its number of examples"),
    "fraction": Fault(
        "claims 1.5 examples", lambda: [reply(FAULTY_NODE, scene().own, 1.5)], 0, "merged; weights are numbers"
    ),
    "nan loss": Fault(
        "reports a loss of NaN",
        lambda: [reply(FAULTY_NODE, scene().own, loss=NAN)],
        0,
        "merged; the others' loss counts",
    ),
    "infinite loss": Fault(
        "reports an infinite loss",
        lambda: [reply(FAULTY_NODE, scene().own, loss=INF)],
        0,
        "merged; the others' loss counts",
    ),
    "long list": Fault(
        "reports a list of a million numbers",
        lambda: [reply(FAULTY_NODE, scene().own, curve=[0.0] * 10**6)],
        0,
        "merged; the list is not aggregated",
    ),
    "long name": Fault(
        "names itself by a list of a million numbers",
        lambda: [reply(FAULTY_NODE, scene().own, **{"client-id": [0.0] * 10**6})],
        0,
        "merged; names are cut short in the log",
    ),
    "weightless lie": Fault(
        "claims 1e-300 examples for a flipped network",
        lambda: [reply(FAULTY_NODE, scene().flipped, 1e-300)],
        0,
        "merged; it counts for nothing",
    ),
    "huge weight": Fault(
        "claims 1e12 examples for a flipped network",
        lambda: [reply(FAULTY_NODE, scene().flipped, 1e12)],
        1,
        "agrees with the majority",
        robust=True,
    ),
    "flipped labels": Fault(
        "learns from flipped labels",
        lambda: [reply(FAULTY_NODE, scene().flipped)],
        1,
        "agrees with the majority",
        robust=True,
    ),
    "scaled": _tensors(_all(lambda _, t: 4 * t), "scales its network by 4", "its distance", robust=True),
    "boosted": _tensors(
        _all(lambda n, t: scene().broadcast[n] + 10 * (t - scene().broadcast[n])),
        "scales its update by 10",
        "its distance",
        robust=True,
    ),
    "signs flipped": _tensors(_all(lambda _, t: -t), "flips the signs of its network", "", robust=True),
    "random": Fault("sends a random network", lambda: [reply(FAULTY_NODE, _random())], 1, "its distance", robust=True),
    "noise": _tensors(_all(_noise), "adds noise of three standard deviations", "its distance", robust=True),
    "two colluding": Fault(
        "joins with a second client that scales its network by 4", _colluding, 2, "its distance", robust=True
    ),
}


@dataclass(frozen=True)
class Outcome:
    """Test accuracies of the round's global model, and the round's metrics."""

    alone: float
    merged: StateDict
    accuracy: float
    metrics: MetricRecord


@lru_cache(maxsize=2)
def without(robust: bool) -> StateDict:
    """The global model of the honest clients alone."""
    arrays, _ = strategy(robust="exclude" if robust else None).aggregate_train(1, honest_replies())
    assert arrays is not None
    return dict(arrays.to_torch_state_dict())


def play(fault: Fault, options: dict[str, Any] | None = None) -> Outcome:
    """One round of honest clients and the faulty one."""
    identify()
    arrays, metrics = strategy(**(fault.options() if options is None else options)).aggregate_train(
        1, [*fault.replies(), *honest_replies()]
    )
    assert arrays is not None
    assert metrics is not None
    merged = dict(arrays.to_torch_state_dict())
    return Outcome(scene().accuracy(without(fault.robust)), merged, scene().accuracy(merged), metrics)


def noise() -> float:
    """Twice the standard error of an accuracy near 90 % on the test set."""
    return 2 * float(np.sqrt(0.9 * 0.1 / len(scene().labels)))


def page() -> str:
    """The documentation's page."""
    lines = [
        "# Faults",
        "",
        "What one client does wrong, and what becomes of the round: five honest clients and a faulty one, real digits",
        "(scikit-learn's), one round from a shared network, 128 calibration inputs without labels. Accuracy is that of the",
        f"global model on {len(scene().labels)} test images in per cent, without the faulty client and with it; twice its",
        f"standard error is {100 * noise():.1f}. Where a client is left out altogether, both are the same model to the bit.",
        "",
        "Nothing here stops a run. Each reply that is left out is named in the log with the reason, and counted in",
        "`c2m3-left-out`; a client that was asked and did not answer counts in `c2m3-silent`. Rows marked *robust* need",
        '`C2M3(robust="exclude")`; the others hold always. The column *unprotected* is what the same client does to the',
        "model where that option is off.",
        "",
        "| The client | Outcome | Mode | Without | With | Unprotected |",
        "|---|---|---|---|---|---|",
    ]
    for fault in FAULTS.values():
        found = play(fault)
        unprotected = f"{100 * play(fault, {}).accuracy:.1f}" if fault.robust else ""
        left_out = found.metrics["c2m3-left-out"]
        outcome = f"{left_out} left out" if left_out else fault.reason
        mode = "robust" if fault.robust else ""
        row = (fault.what, outcome, mode, f"{100 * found.alone:.1f}", f"{100 * found.accuracy:.1f}", unprotected)
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "Lies about moments (silence, errors, NaN, impossible or absurd values, means and variances that the other clients",
        "belie) leave the client out of the repair, never out of the average: `tests/federation/test_exchange.py`. Odd",
        "evaluations and metrics cost only themselves: `tests/federation/test_metrics.py`. Checkpoints that cannot be",
        "written, are another run's, or have other options, and a server that is killed:",
        "`tests/federation/test_checkpoint.py`. Of one or two clients none is compared with others. If no reply can be",
        "merged, or the aggregation itself fails, the round is lost and the global model stays as it was.",
        "",
        "No mode withstands a majority that lies alike, nor the default lies of the size of honest updates. Large",
        "minorities that lie by one plan are not measured yet.",
        "",
        "Random rounds of one to three of these faults and random options: `python -m tests.federation.fuzz ROUNDS`.",
        "",
        "This page is written by `python -m tests.federation.faults docs/faults.md`.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    identify()
    Path(arguments[0]).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
