"""Operations and transfers of a matching: counts that do not depend on the machine."""

from __future__ import annotations

import torch

from simulations.experiments.matching import counts
from tests.cases import SPECS, build_problem, random_clients


def test_a_matching_of_five_resnets_takes_few_operations_and_transfers() -> None:
    problem = counts.resnets(5)
    assert counts.operations(problem) < 70_000  # 412,802 when blocks and clients were called one by one
    assert len(problem.blocks) <= 25


def test_a_matching_that_stays_on_its_device_takes_transfers_each_way() -> None:
    calls = counts.transfers(build_problem(SPECS["mlp"], random_clients(SPECS["mlp"], 3)))
    assert min(calls["up"], calls["down"]) > 0


def test_transfers_are_counted_each_way() -> None:
    with counts.Transfers() as counted:
        value = torch.ones(2)
        value.cpu()
        value.tolist()
        value.to(torch.device("cpu"))
        value.to(torch.float64)
    assert counted.calls == {"down": 2, "up": 1}


def test_the_certificate_holds_for_perceptrons_about_one() -> None:
    _, _, held = counts.certificate(counts.perceptrons(2, 0.001))
    assert held == 4
