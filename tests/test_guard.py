"""The guard: the proof that the identity is optimal, the candidates' scores, the choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl import ClientError, OptionError, RepairError, aggregate, average
from c2m3_fl.activations.calibration import CalibrationSet
from c2m3_fl.activations.network import private_network
from c2m3_fl.guard import CANDIDATES, Candidate, Score, best, precedence, score, target
from c2m3_fl.layout import StateDict
from c2m3_fl.matching import Identity, Iteration, Matching, MatchingProblem, RecordedActivationMatcher
from c2m3_fl.merger import Merger
from c2m3_fl.options import MergeOptions
from c2m3_fl.predictions import PredictionReader, TaskName, find_task
from c2m3_fl.round import Clients
from c2m3_fl.symmetry import PermutationSpec

CPU = torch.device("cpu")
INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))


SPEC = PermutationSpec.from_module(network(), INPUTS[:2])


def initial(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(network().state_dict())


def near(state_dict: dict[str, Tensor], seed: int, noise: float = 0.01) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: t + noise * torch.randn(t.shape, generator=generator) for name, t in state_dict.items()}


SHARED = [near(initial(0), seed) for seed in range(4)]
OWN = [initial(seed) for seed in range(4)]


def outputs(state_dict: dict[str, Tensor]) -> Tensor:
    module = network()
    module.load_state_dict(state_dict)
    with torch.no_grad():
        result: Tensor = module(INPUTS)
    return result


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


class Scrambling:
    """A matcher that does its worst."""

    def match(self, problem: MatchingProblem) -> Matching:
        generator = torch.Generator().manual_seed(0)
        permutations = [
            torch.stack([torch.randperm(size, generator=generator) for _ in range(problem.clients)])
            for size in problem.group_sizes
        ]
        return Matching(permutations, (Iteration("scrambling", problem.objective(permutations)),))


def recorded(build: Callable[[], nn.Module], clients: Sequence[StateDict]) -> list[list[Tensor]]:
    """Per client and batch of 16 the predictions."""
    found = []
    for client in clients:
        module = build()
        module.load_state_dict(dict(client))
        with torch.no_grad():
            found.append([module(batch) for batch in INPUTS.split(16)])
    return found


def scored(
    clients: Sequence[StateDict],
    candidates: Sequence[StateDict],
    weights: Sequence[float],
    labels: Tensor | None = None,
    *,
    task: TaskName | None = "classification",
    build: Callable[[], nn.Module] = network,
) -> list[Score]:
    """Scores of candidates by the clients' ensemble, or by labels."""
    predictions = recorded(build, clients)
    targets = None if labels is None else list(labels.split(16))
    wanted = target(find_task(task, predictions[0], targets), predictions, weights, targets)
    batches = CalibrationSet.read(list(INPUTS.split(16)), build()).batches
    with private_network(build, CPU) as private:
        return [score(private, each, batches, wanted, read=PredictionReader(), what="a network") for each in candidates]


def test_without_labels_the_score_is_the_cross_entropy_with_the_ensembles_classes() -> None:
    weights = [1.0, 2.0, 3.0, 4.0]
    votes = sum(w * outputs(client).double().softmax(1) for w, client in zip(weights, OWN, strict=True))
    assert isinstance(votes, Tensor)
    found = scored(OWN, OWN[:2], weights)
    expected = [float(functional.cross_entropy(outputs(c).double(), votes.argmax(1))) for c in OWN[:2]]
    assert [each.loss for each in found] == pytest.approx(expected)
    assert [each.errors for each in found] == [int((outputs(c).argmax(1) != votes.argmax(1)).sum()) for c in OWN[:2]]


def test_labels_on_the_server_are_used() -> None:
    labels = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(1))
    found = scored(OWN, OWN, [1.0] * 4, labels, task=None)
    assert [each.loss for each in found] == pytest.approx(
        [float(functional.cross_entropy(outputs(c), labels)) for c in OWN]
    )
    assert [each.errors for each in found] == [int((outputs(c).argmax(1) != labels).sum()) for c in OWN]


def test_examples_without_a_label_do_not_count() -> None:
    labels = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(1))
    labels[::3], labels[1::3] = -1, -100
    known = labels >= 0
    found = scored(OWN, OWN, [1.0] * 4, labels, task=None)
    assert [each.loss for each in found] == pytest.approx(
        [float(functional.cross_entropy(outputs(c)[known], labels[known])) for c in OWN]
    )
    unlabelled = scored(OWN, OWN, [1.0] * 4, torch.full((64,), -1), task=None)
    assert unlabelled == scored(OWN, OWN, [1.0] * 4)


@pytest.mark.parametrize("wrong", [3, -7])
def test_labels_that_do_not_fit_are_an_error(wrong: int) -> None:
    labels = torch.zeros(64, dtype=torch.long).index_fill(0, torch.tensor([2]), wrong)
    with pytest.raises(RepairError, match="without labels"):
        scored(OWN, OWN, [1.0] * 4, labels)
    with pytest.raises(RepairError, match="without labels"):
        aggregate(network, OWN, spec=SPEC, calibration=[(INPUTS, labels)], device="cpu")


def test_what_nothing_tells_is_compared_with_the_clients_mean_by_squared_error() -> None:
    def regression() -> nn.Module:
        return nn.Sequential(network(), nn.Linear(3, 2))

    torch.manual_seed(0)
    clients = [dict(regression().state_dict()) for _ in range(3)]
    predicted = [torch.cat(own) for own in recorded(regression, clients)]
    mean = (predicted[0] + predicted[1] + 2 * predicted[2]) / 4
    (found,) = scored(clients, clients[:1], [1.0, 1.0, 2.0], task=None, build=regression)
    assert found.loss == pytest.approx(float((predicted[0] - mean).square().mean()), rel=1e-4)
    assert found.errors == 0


def test_a_bad_matching_does_no_harm() -> None:
    plain = average(SHARED)
    with_data = aggregate(network, SHARED, spec=SPEC, matcher=Scrambling(), calibration=INPUTS, device="cpu")
    assert with_data.chosen in ("average", "average-repaired")
    without = aggregate(network, OWN, spec=SPEC, matcher=Scrambling(), device="cpu")
    chosen_by_objective = "aligned" if without.alignment.objective >= without.alignment.objective_before else "average"
    assert without.chosen == chosen_by_objective
    unguarded = aggregate(network, SHARED, spec=SPEC, matcher=Scrambling(), guard=False, device="cpu")
    assert not equal(unguarded.state_dict, plain)


def test_without_data_a_lower_objective_means_the_plain_average() -> None:
    # noise that breaks the proof, while scrambled neurons are still far worse than the identity
    clients = [near(initial(0), seed, noise=0.3) for seed in range(4)]
    found = aggregate(network, clients, spec=SPEC, matcher=Scrambling(), device="cpu")
    assert found.alignment.objective < found.alignment.objective_before
    assert found.chosen == "average"
    assert equal(found.state_dict, average(clients))
    assert all(
        torch.equal(order, torch.arange(len(order))) for maps in found.permutations.values() for order in maps.values()
    )


@pytest.mark.parametrize("clients", [SHARED, OWN], ids=["shared", "own"])
def test_the_best_candidate_is_returned_and_all_are_reported(clients: list[dict[str, Tensor]]) -> None:
    found = aggregate(network, clients, spec=SPEC, calibration=INPUTS, device="cpu")
    names = ["average", "average-repaired"]
    assert list(found.scores) == (names if clients is SHARED else list(CANDIDATES))
    assert list(found.errors) == list(found.scores)
    assert found.scores[found.chosen] <= found.scores["average"]
    (again,) = scored(clients, [found.state_dict], [1.0] * 4, task=None)
    assert again.loss == pytest.approx(found.scores[found.chosen])


def chosen(*scores: Score, doubt: float = 0.0) -> int:
    named = dict(zip(CANDIDATES, scores, strict=False))
    return CANDIDATES.index(best(named, doubt))


def test_a_smaller_loss_does_not_decide_against_the_predictions() -> None:
    plain, confident, better = Score(2.0, 40), Score(1.0, 50), Score(1.5, 40)
    assert chosen(plain) == chosen(plain, confident) == chosen(plain, plain) == 0
    assert chosen(plain, confident, better) == 2
    assert chosen(plain, better, confident) == 1
    assert chosen(Score(math.inf, 64), better) == 1


def test_the_more_doubtful_the_target_the_more_a_candidate_must_gain() -> None:
    plain, little, much = Score(2.0, 100), Score(1.0, 96), Score(1.0, 80)
    assert chosen(plain, little, doubt=0.01) == 1
    assert chosen(plain, little, doubt=0.81) == 0
    assert chosen(plain, much, doubt=0.81) == 1


def test_labels_are_not_doubted_and_an_undecided_ensemble_is() -> None:
    def doubt(client: StateDict, labels: Tensor | None = None) -> float:
        predictions = recorded(network, [client])
        targets = None if labels is None else list(labels.split(16))
        return target(find_task("classification", predictions[0], targets), predictions, [1.0], targets).doubt

    undecided = {name: torch.zeros_like(tensor) for name, tensor in SHARED[0].items()}
    assert doubt(undecided) == pytest.approx(1 - 1 / 3)
    assert doubt(undecided, torch.zeros(64, dtype=torch.long)) == 0.0
    assert doubt({name: 100 * tensor for name, tensor in SHARED[0].items()}) < 0.1


def test_the_plain_method_is_there_without_guard() -> None:
    found = aggregate(network, SHARED, spec=SPEC, calibration=INPUTS, guard=False, device="cpu")
    assert (found.chosen, dict(found.scores)) == ("average-repaired", {})
    matched = aggregate(network, OWN, spec=SPEC, matcher=Identity(), guard=False, device="cpu")
    assert equal(matched.state_dict, average(OWN))


def test_a_client_whose_predictions_are_not_finite_is_left_out() -> None:
    broken = OWN[1] | {"0.weight": torch.full((12, 6), 1e30), "2.weight": torch.full((9, 12), 1e30)}
    found = aggregate(network, [OWN[0], broken, OWN[2]], spec=SPEC, calibration=INPUTS, device="cpu")
    expected = aggregate(network, [OWN[0], OWN[2]], spec=SPEC, calibration=INPUTS, device="cpu")
    assert list(found.excluded) == [1]
    assert equal(found.state_dict, expected.state_dict)
    with pytest.raises(ClientError, match=r"no client can be merged: .*not finite"):
        aggregate(network, [broken, broken], spec=SPEC, calibration=INPUTS, device="cpu")


@pytest.mark.parametrize(("clients", "doubted"), [(SHARED, True), (OWN, False)], ids=["shared", "own"])
def test_the_targets_doubt_protects_an_average_that_needs_no_matching(
    clients: list[dict[str, Tensor]], doubted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def watch(scores: Mapping[Candidate, Score], doubt: float) -> Candidate:
        seen.append(doubt)
        return best(scores, doubt)

    monkeypatch.setattr("c2m3_fl.session.best", watch)
    aggregate(network, clients, spec=SPEC, calibration=INPUTS, task="classification", device="cpu")
    assert (seen[0] > 0) is doubted


def test_the_classifier_is_refitted_only_where_that_makes_sense() -> None:
    def known(*, repair: str | None = "least-squares", **options: object) -> dict[str, Tensor]:
        given = {"spec": SPEC, "calibration": INPUTS, "repair": repair, "device": "cpu"} | options
        return aggregate(network, SHARED, **given).state_dict  # type: ignore[arg-type]

    labels = outputs(SHARED[0]).argmax(1)
    kept = known(calibration=[(INPUTS, labels)])
    refitted = known(calibration=[(INPUTS, labels)], classifier="refit")
    changed = {name for name in kept if not torch.equal(kept[name], refitted[name])}
    assert changed <= {"4.weight", "4.bias"}
    assert (outputs(refitted).argmax(1) == labels).sum() >= (outputs(kept).argmax(1) == labels).sum()
    with pytest.raises(OptionError, match="needs a network that scores one of several classes"):
        known(classifier="refit")
    with pytest.raises(OptionError, match="needs calibration inputs"):
        known(calibration=None, classifier="refit")


def test_activations_enter_the_default_matching_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    class Watched(RecordedActivationMatcher):
        def __post_init__(self) -> None:
            shares.append(self.share)
            super().__post_init__()

    monkeypatch.setattr("c2m3_fl.session.RecordedActivationMatcher", Watched)
    aggregate(network, OWN, spec=SPEC, calibration=INPUTS, device="cpu")
    assert shares == [0.1]
    aggregate(network, OWN, spec=SPEC, calibration=INPUTS, activations=0, device="cpu")
    aggregate(network, OWN, spec=SPEC, calibration=INPUTS, matcher="coordinate-ascent", device="cpu")
    aggregate(network, OWN, spec=SPEC, device="cpu")
    assert shares == [0.1]


def test_the_default_repair_depends_on_the_use() -> None:
    once = aggregate(network, SHARED, spec=SPEC, calibration=INPUTS, guard=False, device="cpu")
    named = aggregate(network, SHARED, spec=SPEC, calibration=INPUTS, guard=False, repair="least-squares", device="cpu")
    assert equal(once.state_dict, named.state_dict)
    merger = Merger.prepare(network, SPEC, INPUTS, MergeOptions(guard=False), trained_on=True)
    bounded = MergeOptions(guard=False, repair="least-squares-bounded")
    trained = Merger.prepare(network, SPEC, INPUTS, bounded).merge(Clients.of(SHARED))
    assert equal(merger.merge(Clients.of(SHARED)).state_dict, trained.state_dict)
    assert not equal(once.state_dict, trained.state_dict)


def test_where_the_alignment_gained_its_repaired_average_comes_before_the_plain_ones() -> None:
    """Least squares make any average fit 256 inputs: two errors more in 256 say nothing, the objective does."""
    scores: dict[Candidate, Score] = {
        "average": Score(2.27, 194),
        "average-repaired": Score(0.1687, 15),
        "aligned": Score(0.71, 54),
        "aligned-repaired": Score(0.1683, 17),
    }

    def chosen_among(gained: bool) -> Candidate:
        return best({name: scores[name] for name in precedence(gained=gained)})

    assert chosen_among(gained=True) == "aligned-repaired"
    assert chosen_among(gained=False) == "average-repaired"
    scores["average-repaired"] = Score(0.1, 5)
    assert chosen_among(gained=True) == "average-repaired"
