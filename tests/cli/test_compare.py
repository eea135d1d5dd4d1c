from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from c2m3_fl.analysis import gram_cka, gram_matrices, linear_cka
from c2m3_fl.cli import main
from tests.cli.networks import FEATURES, PERCEPTRON, labelled, perceptron, planted, save, weights


def test_permuted_copies_are_one_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = labelled(tmp_path, weights(0))
    assert main(["compare", PERCEPTRON, *planted(tmp_path, 3), "--data", data, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for pair in result["pairs"]:
        assert pair["distance_before"] > 0.1
        assert pair["distance"] == 0
        assert pair["cosine"] == pytest.approx(1)
    assert list(result["cka"]) == ["0", "2"]
    assert all(value == pytest.approx(1) for values in result["cka"].values() for value in values)
    assert set(result["cycle_error"].values()) == {0.0}


def test_pairwise_cycles_of_unrelated_networks_do_not_close(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [save(tmp_path / f"{seed}.pt", weights(seed)) for seed in range(4)]
    assert main(["compare", PERCEPTRON, *files, "--input", "1,6"]) == 0
    printed = capsys.readouterr().out
    through, pairwise = [float(line.split()[0]) for line in printed.partition("cycle error\n")[2].splitlines()]
    assert through == 0
    assert pairwise > 0
    assert "CKA" not in printed
    assert main(["compare", PERCEPTRON, files[0], "--input", "1,6"]) == 2


def test_cka_of_gram_matrices_is_that_of_representations() -> None:
    first, second = weights(0), weights(1)
    inputs = torch.randn(20, FEATURES)
    seen = []
    for tensors in (first, second):
        network = perceptron()
        network.load_state_dict(tensors)
        seen.append(network[0](inputs))
    grams = [gram_matrices(perceptron(), tensors, inputs)["0"] for tensors in (first, second)]
    assert gram_cka(*grams) == pytest.approx(linear_cka(*seen), rel=1e-6)
    with pytest.raises(ValueError, match="same for all inputs"):
        gram_cka(torch.zeros(3, 3), torch.eye(3))
