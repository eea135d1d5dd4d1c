"""The guard: the proof that the identity is optimal, the candidates' scores, the choice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from c2m3_fl import RepairError, aggregate, average
from c2m3_fl.activations.calibration import CalibrationSet
from c2m3_fl.guard import Score, best, score, target
from c2m3_fl.matching import Identity, Iteration, Matching, MatchingProblem
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


def test_without_labels_the_score_is_the_cross_entropy_with_the_ensembles_classes() -> None:
    weights = [1.0, 2.0, 3.0, 4.0]
    votes = sum(w * outputs(client).double().softmax(1) for w, client in zip(weights, OWN, strict=True))
    assert isinstance(votes, Tensor)
    for batches in (INPUTS, list(INPUTS.split(10))):
        data = CalibrationSet.read(batches, network())
        wanted = target(network, OWN, data, weights=weights, device=CPU)
        found = score(network, OWN[:2], wanted, device=CPU)
        expected = [float(functional.cross_entropy(outputs(c).double(), votes.argmax(1))) for c in OWN[:2]]
        assert [each.loss for each in found] == pytest.approx(expected)


def test_labels_on_the_server_are_used() -> None:
    labels = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(1))
    data = CalibrationSet.read(zip(INPUTS.split(16), labels.split(16), strict=True), network())
    wanted = target(network, OWN, data, weights=[1.0] * 4, device=CPU)
    found = score(network, OWN, wanted, device=CPU)
    assert [each.loss for each in found] == pytest.approx(
        [float(functional.cross_entropy(outputs(c), labels)) for c in OWN]
    )
    assert [each.errors for each in found] == [int((outputs(c).argmax(1) != labels).sum()) for c in OWN]


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 3, 0]), torch.tensor([0, -1, 2, 0])])
def test_labels_that_do_not_fit_are_an_error(labels: Tensor) -> None:
    data = CalibrationSet.read([(INPUTS[:4], labels)], network())
    with pytest.raises(RepairError, match="without labels"):
        target(network, OWN, data, weights=[1.0] * 4, device=CPU)


def test_only_whole_sets_of_targets_count() -> None:
    labels = torch.zeros(4, dtype=torch.long)
    assert CalibrationSet.read([(INPUTS[:4], "names")], network()).targets is None
    assert CalibrationSet.read([(INPUTS[:4], labels), INPUTS[4:]], network()).targets is None
    with pytest.raises(RepairError, match="4 inputs and 3 targets"):
        CalibrationSet.read([(INPUTS[:4], labels[:3])], network())


def test_outputs_that_are_no_class_scores_are_compared_with_the_clients_mean() -> None:
    def regression() -> nn.Module:
        return nn.Sequential(network(), nn.Linear(3, 1), nn.Flatten(0))

    torch.manual_seed(0)
    clients = [dict(regression().state_dict()) for _ in range(3)]
    wanted = target(regression, clients, CalibrationSet.read(INPUTS, network()), weights=[1.0, 1.0, 2.0], device=CPU)
    modules = [regression() for _ in clients]
    for module, client in zip(modules, clients, strict=True):
        module.load_state_dict(client)
    predicted = [module(INPUTS).detach() for module in modules]
    mean = (predicted[0] + predicted[1] + 2 * predicted[2]) / 4
    (found,) = score(regression, clients[:1], wanted, device=CPU)
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
    assert all(torch.equal(order, torch.arange(len(order))) for maps in found.permutations for order in maps.values())


@pytest.mark.parametrize("clients", [SHARED, OWN], ids=["shared", "own"])
def test_the_best_candidate_is_returned_and_all_are_reported(clients: list[dict[str, Tensor]]) -> None:
    found = aggregate(network, clients, spec=SPEC, calibration=INPUTS, device="cpu")
    names = ["average", "average-repaired"]
    assert list(found.scores) == (
        names if clients is SHARED else ["average", "aligned", "average-repaired", "aligned-repaired"]
    )
    plain = found.errors["average"], found.scores["average"]
    assert (found.errors[found.chosen], found.scores[found.chosen]) <= plain
    wanted = target(network, clients, CalibrationSet.read(INPUTS, network()), weights=[1.0] * 4, device=CPU)
    assert score(network, [found.state_dict], wanted, device=CPU) == [
        Score(found.scores[found.chosen], found.errors[found.chosen])
    ]


def test_a_smaller_loss_does_not_decide_against_the_predictions() -> None:
    plain, confident, better = Score(2.0, 40), Score(1.0, 50), Score(1.5, 40)
    assert best([plain]) == best([plain, confident]) == best([plain, plain]) == 0
    assert best([plain, confident, better]) == 2
    assert best([plain, better, confident]) == 1
    assert best([Score(math.inf, 64), better]) == 1


def test_the_more_doubtful_the_target_the_more_a_candidate_must_gain() -> None:
    plain, little, much = Score(2.0, 100), Score(1.0, 96), Score(1.0, 80)
    assert best([plain, little], 0.01) == 1
    assert best([plain, little], 0.81) == 0
    assert best([plain, much], 0.81) == 1


def test_labels_are_not_doubted_and_an_undecided_ensemble_is() -> None:
    labels = torch.zeros(len(INPUTS), dtype=torch.long)

    def doubt(clients: list[dict[str, Tensor]], calibration: CalibrationSet) -> float:
        return target(network, clients, calibration, weights=[1.0] * len(clients), device=CPU).doubt

    undecided = {name: torch.zeros_like(tensor) for name, tensor in SHARED[0].items()}
    classes = network()(INPUTS).shape[1]
    assert doubt([undecided], CalibrationSet.read(INPUTS, network())) == pytest.approx(1 - 1 / classes)
    assert doubt([undecided], CalibrationSet.read([(INPUTS, labels)], network())) == 0.0
    decided = {name: 100 * tensor for name, tensor in SHARED[0].items()}
    assert doubt([decided], CalibrationSet.read(INPUTS, network())) < 0.1


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
    with pytest.raises(RepairError, match="no client's outputs are finite"):
        aggregate(network, [broken, broken], spec=SPEC, calibration=INPUTS, device="cpu")
