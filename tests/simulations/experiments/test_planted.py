"""Experiments on networks whose right answer is known.

Merged exactly, permuted copies of a network are the network; with noise, each method's result is computed here once more
from the package's own functions, which keeps methods, stages, splits and sets from being mixed up.
"""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import pytest
import torch

from c2m3_fl.alignment import align
from c2m3_fl.averaging import average
from c2m3_fl.matching import MatchingProblem
from c2m3_fl.matching.problem import as_client_maps
from c2m3_fl.repair import repair
from c2m3_fl.symmetry import compose, invert
from simulations.experiments.matching import activations, comparison, sets
from simulations.experiments.matching.matchers import MATCHERS
from simulations.experiments.paper import (
    ablation,
    connectivity,
    convergence,
    cycle_consistency,
    increasing_n,
    matching_time,
    merging_five,
    pairwise_barriers,
    reference,
    seed_variance,
    similarity,
    starts,
    subsets,
    width,
)
from simulations.experiments.registry import EXPERIMENTS
from simulations.laboratory.experiment import Claim, Experiment, Table
from simulations.laboratory.laboratory import Laboratory
from simulations.laboratory.ledger import Record, select
from tests.simulations.experiments import planted
from tests.simulations.experiments.planted import PlantedStore, group, measured

PLANTED = [experiment for experiment in EXPERIMENTS if experiment.page not in ("federated", "scale")]
WRONG = 1 / planted.WRONG_EVERY
FAR_BELOW = 0.4
EXACT = {"test_accuracy": 1 - WRONG, "train_accuracy": 1.0}


@pytest.fixture(scope="module")
def exact() -> Laboratory:
    return planted.laboratory()


@pytest.fixture(scope="module")
def nearly() -> Laboratory:
    """Copies that are just not the same, so that three of them span a plane."""
    return planted.laboratory(noise=0.02)


@pytest.fixture(scope="module")
def noisy() -> Laboratory:
    """Noise so strong that MergeMany, Frank-Wolfe and the default find different permutations."""
    return planted.laboratory(noise=1.5)


def is_exact(quality: dict[str, float]) -> bool:
    return {name: quality[name] for name in EXACT} == EXACT


def by_matcher(lab: Laboratory, seeds: tuple[int, ...], matcher: str) -> dict[str, object]:
    """What merging gives, by the package's functions alone: the networks of these seeds, mapped, averaged and repaired."""
    some = group(lab, *seeds)
    alignment = align(some.networks, some.bench.spec, matcher=matcher, device="cpu")
    mapped = alignment.apply(some.networks)
    merged = average(mapped)
    calibration = torch.cat(some.bench.calibration)
    stages = {"average": merged}
    for stage, method in (("repaired", "repair"), ("refitted", "least-squares")):
        stages[stage] = repair(
            some.bench.module, merged, mapped, calibration, method=method, output_layer=False, device="cpu"
        )
    return {
        "objective": pytest.approx(planted.objective(mapped), rel=1e-5),
        **{stage: some.bench.quality(network) for stage, network in stages.items()},
    }


def values(record: Record, *names: str) -> dict[str, object]:
    return {name: record.values[name] for name in names}


MERGED = ("objective", "average", "repaired", "refitted")
MATCHER = {"naive": "identity", "merge-many": "merge-many", "c2m3": "default"}


@pytest.mark.parametrize("experiment", PLANTED, ids=lambda experiment: experiment.name)
def test_every_measurement_is_finite_and_shown(experiment: Experiment, noisy: Laboratory) -> None:
    records = measured(experiment, noisy)
    assert records
    assert len({str(record.about) for record in records}) == len(records)
    assert all(torch.isfinite(torch.tensor(planted.numbers(record.values))).all() for record in records)
    tables = list(experiment.tables(records))
    assert tables
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert any(planted.NETWORK in text for table in tables for text in (table.title, *(r[0] for r in table.rows)))
    assert all(planted.NETWORK in finding for finding in experiment.findings(records))
    assert all(claim.here for claim in experiment.claims(records))
    assert all(picture.caption for picture in experiment.pictures(records))
    # A run that was interrupted can be shown as well.
    for count in (0, 1, 2, len(records) // 2, len(records) - 1):
        some = records[:count]
        assert all(isinstance(part, Table | str | Claim) for part in shown(experiment, some, noisy))


def shown(experiment: Experiment, records: list[Record], lab: Laboratory) -> list[object]:
    complete = experiment.complete(records, experiment.cells(lab))
    return [*experiment.tables(records), *experiment.findings(complete), *experiment.claims(complete)]


def test_the_bench_judges_on_the_split_that_it_names(exact: Laboratory) -> None:
    bench, store = group(exact, 0).bench, exact.store
    assert isinstance(store, PlantedStore)
    assert is_exact(bench.quality(store.teacher))
    assert bench.score(store.teacher)[0] == 1 - WRONG
    calibration = torch.cat(bench.calibration)
    assert len(calibration) == 256
    judged, held = bench.train[0].flatten(1), calibration.flatten(1)
    assert not (judged[:, None] == held).all(2).any()


@pytest.mark.parametrize("experiment", [increasing_n.EXPERIMENT, merging_five.EXPERIMENT, sets.EXPERIMENT])
def test_copies_merge_into_the_network_itself(experiment: Experiment, exact: Laboratory) -> None:
    for record in measured(experiment, exact):
        if record.about["method"] == "endpoint":
            assert is_exact(dict(record.values))
        elif record.about["method"] == "naive":
            assert record.values["average"]["train_accuracy"] < FAR_BELOW
            assert record.values["repaired"] != record.values["average"]
        elif record.about["method"] == "c2m3":
            assert all(is_exact(record.values[stage]) for stage in ("average", "repaired", "refitted"))


def test_increasing_n_merges_the_first_n_by_the_method_it_names(noisy: Laboratory) -> None:
    found = {}
    for record in measured(increasing_n.EXPERIMENT, noisy):
        if "n" in record.about:
            seeds = tuple(range(record.about["n"]))
            found[seeds, record.about["method"]] = record.values["objective"]
            assert values(record, *MERGED) == by_matcher(noisy, seeds, MATCHER[record.about["method"]])
    assert sorted({len(seeds) for seeds, _ in found}) == [2, 3]
    objectives = [found[(0, 1, 2), method] for method in ("c2m3", "merge-many", "naive")]
    assert objectives[0] > 1.05 * objectives[1] > 1.05 * objectives[2]


def test_five_networks_are_merged_by_the_method_named(noisy: Laboratory) -> None:
    merges = [r for r in measured(merging_five.EXPERIMENT, noisy) if "group" in r.about]
    assert [r.about["method"] for r in merges] == list(MATCHER)
    for record in merges:
        assert values(record, *MERGED) == by_matcher(noisy, (0, 1, 2, 3, 4), MATCHER[record.about["method"]])


def test_sets_are_merged_by_the_method_named_and_compared_set_by_set(noisy: Laboratory) -> None:
    records = measured(sets.EXPERIMENT, noisy)
    for record in records:
        if record.about.get("method") in MATCHER:
            expected = by_matcher(noisy, tuple(record.about["set"]), MATCHER[record.about["method"]])
            assert values(record, *MERGED) == expected
    by_set = {str(r.about["set"]): r.values["objective"] for r in select(records, method="c2m3")}
    others = {str(r.about["set"]): r.values["objective"] for r in select(records, method="merge-many")}
    gains = [100 * (by_set[each] / others[each] - 1) for each in by_set if len(each) == len("[0, 1, 2]")]
    row = next(row for row in list(sets.tables(records))[-1].rows if row[1] == "3")
    assert row[3] == f"{gains[0]:+.2f}"
    assert sets.subsets(5, 3, 10) == list(combinations(range(5), 3))
    assert sets.subsets(6, 2, 3) == [(0, 1), (1, 2), (2, 4)]


def test_subsets_are_the_networks_they_name(noisy: Laboratory) -> None:
    records = measured(subsets.EXPERIMENT, noisy)
    assert len(records) == 2 * (10 + 10 + 5)
    whole = group(noisy, 0, 1, 2, 3, 4)
    jointly = whole.merge("default").mapped
    for record in records:
        seeds = tuple("abcde".index(letter) for letter in record.about["subset"])
        assert len(seeds) == record.about["k"]
        if record.about["subset"] not in ("ab", "ce", "bde", "acde"):
            continue
        if record.about["scheme"] == "joint":
            assert record.values["average"] == whole.bench.quality(average([jointly[seed] for seed in seeds]))
        else:
            expected = by_matcher(noisy, seeds, "default")
            assert dict(record.values) == {stage: expected[stage] for stage in record.values}


def test_maps_through_the_universe_have_no_cycle_error_and_pairwise_ones_do(noisy: Laboratory) -> None:
    pairwise_maps, joint = measured(cycle_consistency.EXPERIMENT, noisy)
    assert [r.about["method"] for r in (pairwise_maps, joint)] == ["git-re-basin", "c2m3"]
    assert joint.values["errors"] == [0, 0, 0]
    assert min(pairwise_maps.values["errors"]) > 0
    own = group(noisy, 0).bench.score(group(noisy, 0).networks[0])
    assert joint.values["accuracy"] == [own[0]] * len(joint.values["position"])
    assert pairwise_maps.values["accuracy"][0] == own[0]
    assert joint.values["loss"] == [own[1]] * len(joint.values["position"])
    assert pairwise_maps.values["loss"][0] == own[1] != pairwise_maps.values["loss"][-2]


def test_copies_are_consistent_however_they_are_matched(exact: Laboratory) -> None:
    for record in measured(ablation.EXPERIMENT, exact):
        assert record.values["cycle_errors"] == [0, 0, 0]
        assert record.values["barriers"] == pytest.approx([0, 0, 0], abs=1e-4)
        assert is_exact(record.values["average"])


def test_only_pairwise_maps_have_a_cycle_error(noisy: Laboratory) -> None:
    for record in measured(ablation.EXPERIMENT, noisy):
        assert (max(record.values["cycle_errors"]) > 0) == record.about["way"].startswith("pairs")
    jointly = select(measured(ablation.EXPERIMENT, noisy), group=0, way="jointly, the default")[0]
    expected = by_matcher(noisy, (0, 1, 2), "default")
    assert jointly.values["objective"] == expected["objective"]
    assert jointly.values["objective"] == max(r.values["objective"] for r in select_group(noisy))


def select_group(lab: Laboratory) -> list[Record]:
    return select(measured(ablation.EXPERIMENT, lab), group=0)


def test_synchronisation_recovers_planted_maps_from_pairs_of_which_some_are_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    planted_maps = [{"g": torch.randperm(12, generator=generator)} for _ in range(5)]
    pairs = list(permutations(range(5), 2))
    true = {(p, q): compose(planted_maps[q], invert(planted_maps[p])) for p, q in pairs}
    wrong = {"g": torch.randperm(12, generator=generator)}
    found = ablation.synchronised({**true, (1, 3): wrong, (3, 1): invert(wrong)}, 5)
    assert all(torch.equal(found[pair]["g"], true[pair]["g"]) for pair in pairs)


def test_matched_copies_have_no_barrier_and_unmatched_ones_do(exact: Laboratory) -> None:
    for record in measured(pairwise_barriers.EXPERIMENT, exact):
        losses, middle = record.values["test_loss"], len(record.values["test_loss"]) // 2
        assert {record.values["test_accuracy"][end] for end in (0, -1)} == {1 - WRONG}
        assert {record.values["train_accuracy"][end] for end in (0, -1)} == {1.0}
        if record.about["method"] == "naive":
            assert record.values["train_accuracy"][middle] < FAR_BELOW
        else:
            assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)


def test_midpoints_are_those_of_the_pair_and_the_matcher_named(exact: Laboratory, noisy: Laboratory) -> None:
    assert all(is_exact(dict(r.values)) for r in measured(seed_variance.EXPERIMENT, exact))
    records = measured(seed_variance.EXPERIMENT, noisy)
    assert len(records) == 3 * (noisy.scale.matching_seeds + 2)
    for record in select(records, method="c2m3"):
        expected = by_matcher(noisy, tuple(record.about["pair"]), "default")
        assert record.values["objective"] == expected["objective"]
        assert record.values["test_accuracy"] == expected["average"]["test_accuracy"]  # type: ignore[index]
    of_seeds = [
        {r.values["objective"] for r in select(records, method="git-re-basin", pair=list(pair))}
        for pair in combinations(range(3), 2)
    ]
    assert max(len(each) for each in of_seeds) > 1


def test_every_start_is_measured_on_its_own_objective(exact: Laboratory, noisy: Laboratory) -> None:
    for record in measured(starts.EXPERIMENT, exact):
        assert record.values["barriers"] == pytest.approx([0, 0, 0], abs=1e-3)
    records = measured(starts.EXPERIMENT, noisy)
    assert [(r.about["start"], r.about["seed"]) for r in records[-2:]] == [("sinkhorn", 0), ("sinkhorn", 1)]
    identity = select(records, start="identity")[0]
    assert identity.values["objective"] == by_matcher(noisy, (0, 1, 2), "frank-wolfe")["objective"]
    assert len({r.values["objective"] for r in records}) > 2


def test_width_compares_with_the_networks_of_that_width(exact: Laboratory, noisy: Laboratory) -> None:
    (record,) = measured(width.EXPERIMENT, exact)
    assert record.values["endpoint_accuracy"] == 1 - WRONG
    assert is_exact(record.values["average"])
    (record,) = measured(width.EXPERIMENT, noisy)
    assert values(record, *MERGED) == by_matcher(noisy, (0, 1, 2), "default")


def test_networks_are_mapped_to_the_reference_itself(exact: Laboratory) -> None:
    some = group(exact, 0, 1, 2, 3, 4)
    mapped = reference.mapped_to(some, 2, "git-re-basin")
    assert all(torch.equal(each[name], some.networks[2][name]) for each in mapped for name in each)
    records = measured(reference.EXPERIMENT, exact)
    assert [r.about["reference"] for r in records] == [*"abcde", "universe"]
    assert all(is_exact(r.values[stage]) for r in records for stage in ("average", "repaired"))


def test_the_reference_is_the_one_named(noisy: Laboratory) -> None:
    some = group(noisy, 0, 1, 2, 3, 4)
    records = measured(reference.EXPERIMENT, noisy)
    for number in (0, 3):
        expected = some.bench.quality(average(reference.mapped_to(some, number, "git-re-basin")))
        assert records[number].values["average"] == expected
    assert records[-1].values["average"] == by_matcher(noisy, (0, 1, 2, 3, 4), "default")["average"]


def test_the_universe_is_flat_for_copies_and_their_own_space_is_not(nearly: Laboratory) -> None:
    records = measured(connectivity.EXPERIMENT, nearly)
    for record in select(records, what="curve"):
        accuracy = record.values["accuracy"]
        flat = accuracy == pytest.approx([1 - WRONG] * len(accuracy), abs=0.02)
        assert flat == (record.about["space"] == "after")
    before, after = (r.values["losses"] for r in select(records, what="landscape"))
    highest = [max(max(row) for row in losses) for losses in (before, after)]
    assert highest[1] < highest[0]


def test_repair_changes_what_is_between_two_networks_and_not_the_networks(noisy: Laboratory) -> None:
    records = measured(connectivity.EXPERIMENT, noisy)
    for pair in combinations(range(3), 2):
        plain, repaired = (
            select(records, what="curve", space="after", repaired=each, pair=list(pair))[0].values
            for each in (False, True)
        )
        for quantity in ("accuracy", "loss"):
            assert [plain[quantity][end] for end in (0, -1)] == [repaired[quantity][end] for end in (0, -1)]
        assert plain["loss"][1:-1] != repaired["loss"][1:-1]
        own = group(noisy, *pair)
        assert plain["accuracy"][0] == own.bench.score(own.networks[0])[0]


def test_copies_are_the_same_in_the_universe(exact: Laboratory) -> None:
    (record,) = measured(similarity.EXPERIMENT, exact)
    before, after = record.values["before"], record.values["after"]
    size = range(5)
    for p, q in combinations(size, 2):
        assert after["cosine"][p][q] == pytest.approx(1)
        assert after["distance"][p][q] == pytest.approx(0, abs=1e-5)
        assert after["representation_distance"][p][q] == pytest.approx(0, abs=1e-4)
        assert before["cosine"][p][q] < FAR_BELOW
        assert before["representation_distance"][p][q] > 1
        # CKA does not depend on the order of the neurons.
        assert before["cka"][p][q] == pytest.approx(1, abs=1e-4)


def test_the_objective_rises_to_what_frank_wolfe_found(noisy: Laboratory) -> None:
    history, snapshots = measured(convergence.EXPERIMENT, noisy)
    objective = history.values["objective"]
    assert all(b >= a - 1e-4 * abs(a) for a, b in pairwise(objective))
    # The last one is that of the hard permutations.
    assert objective[-1] == by_matcher(noisy, (0, 1, 2), "frank-wolfe")["objective"]
    for soft in snapshots.values["maps"]:
        rows = torch.tensor(soft)
        assert (rows >= 0).all()
        assert rows.sum(0).tolist() == pytest.approx([1] * len(rows), abs=1e-4)
    assert snapshots.values["maps"][0] != snapshots.values["maps"][1]


def test_time_is_that_of_the_matcher_named_and_of_one_iteration(noisy: Laboratory) -> None:
    records = measured(matching_time.EXPERIMENT, noisy)
    for record in select(records, n=3):
        name = {"c2m3": "default"}.get(record.about["method"], record.about["method"])
        if not name.endswith("iteration"):
            assert record.values["objective"] == by_matcher(noisy, (0, 1, 2), name)["objective"]
    lists = [r for r in planted.cells(matching_time.EXPERIMENT, noisy) if r.about["method"].endswith("iteration")]
    assert all(cell.depends["runs"] == 3 and "3" in cell.depends["matcher"] for cell in lists)


def test_matchers_are_compared_by_their_own_maps(noisy: Laboratory) -> None:
    records = measured(comparison.EXPERIMENT, noisy)
    some = group(noisy, 0, 1, 2)
    problem = MatchingProblem.build(some.networks, some.bench.spec, [1.0] * 3, torch.device("cpu"))
    for name in ("identity", "default", "merge-many"):
        (record,) = select(records, matcher=name)
        maps = MATCHERS[name].match(problem).permutations
        assert record.values["objective"] == problem.objective(maps) / 2
        each = as_client_maps(problem.group_names, maps, 3)
        mapped = [some.bench.spec.apply(*pair) for pair in zip(some.networks, each, strict=True)]
        assert record.values["objective"] == pytest.approx(planted.objective(mapped) / 2, rel=1e-5)
        assert record.values["average"] == some.bench.quality(average(mapped))
    three = {r.about["matcher"]: r.values["objective"] for r in select(records, n=3) if "matcher" in r.about}
    assert three["default"] > 1.05 * three["merge-many"]
    assert three["effort-8"] >= three["default"] >= three["effort-0"]
    (default,) = select(records, n=3, matcher="default")
    assert default.values["product_seconds"] > 0
    assert [r for r in records if "matcher" in r.about and r.values["product_seconds"]] == select(
        records, matcher="default"
    )


def test_activations_alone_bring_copies_back(exact: Laboratory) -> None:
    for record in measured(activations.EXPERIMENT, exact):
        assert is_exact(record.values["average"])
    assert activations.consecutive(5, 2, 3) == [(0, 1), (2, 3), (0, 4)]


def test_the_share_of_activations_changes_the_match(noisy: Laboratory) -> None:
    found = {r.about["share"]: r.values["objective"] for r in measured(activations.EXPERIMENT, noisy)}
    assert found["0"] == by_matcher(noisy, (0, 1), "default")["objective"]
    assert found["inf"] < found["0"]
