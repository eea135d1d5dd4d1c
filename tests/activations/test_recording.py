"""What is kept of a forward pass: the same whatever the batches, and mapped as the network is mapped."""

import pytest
import torch
from torch import Tensor

from c2m3_fl.activations.calibration import CalibrationSet
from c2m3_fl.activations.network import private_network
from c2m3_fl.activations.recording import Recording, record
from c2m3_fl.repair import repair
from c2m3_fl.symmetry import PermutationSpec
from tests.repair.networks import NETWORKS, ODD_NETWORKS, State, client, inputs

BUILDS = NETWORKS | ODD_NETWORKS
every_network = pytest.mark.parametrize("name", BUILDS)


def recorded(name: str, state: State, x: object, *, recalibrate: bool = True) -> Recording:
    with private_network(BUILDS[name], torch.device("cpu")) as network:
        batches = CalibrationSet.read(x, network.module).batches  # type: ignore[arg-type]
        network.load(state, "the state")
        sites = network.sites(batches[0])
        rows = {site.name: 30 for site in sites}
        return record(
            network, state, sites, batches, "it", read=lambda output: output, rows=rows, recalibrate=recalibrate
        )


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def assert_same(a: Recording, b: Recording) -> None:
    assert a.moments.keys() == b.moments.keys()
    assert a.outputs.keys() == b.outputs.keys()
    for site, found in a.moments.items():
        close(found.mean, b.moments[site].mean)
        close(found.std, b.moments[site].std)
    for site, norms in a.norms.items():
        close(norms, b.norms[site])
    for site, sample in a.outputs.items():
        close(sample.values, b.outputs[site].values)
    close(torch.cat(list(a.predictions)), torch.cat(list(b.predictions)))


@every_network
def test_a_mapped_recording_is_that_of_the_mapped_network(name: str) -> None:
    state, x = client(BUILDS[name], 0), inputs()
    spec = PermutationSpec.from_module(BUILDS[name](), x[:2])
    order = spec.random(torch.Generator().manual_seed(0))
    found = recorded(name, state, x)
    assert found.fault is None
    assert_same(recorded(name, spec.apply(state, order), x), found.mapped(spec, order))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_batches_do_not_matter(name: str) -> None:
    state, x = client(NETWORKS[name], 0), inputs()
    assert_same(recorded(name, state, x.split([5, 12, 7])), recorded(name, state, x))


def test_a_recalibrated_recording_is_that_of_the_recalibrated_network() -> None:
    name = "resnet-batchnorm"
    state, x = client(NETWORKS[name], 0), inputs()
    fresh = repair(NETWORKS[name], state, [state], x, method="recalibrate", device="cpu")
    assert_same(recorded(name, state, x.split(7)), recorded(name, fresh, x, recalibrate=False))


def test_what_is_not_finite_is_a_fault() -> None:
    state = client(NETWORKS["resnet-layernorm"], 0)
    state["3.conv1.weight"][0] = torch.inf
    fault = recorded("resnet-layernorm", state, inputs()).fault
    assert fault is not None
    assert "not finite" in fault
