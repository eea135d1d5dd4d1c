"""Well-known networks: the page in the docs holds, and small versions are found to move nearly everything."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.architectures import ARCHITECTURES, PAGE, measure
from c2m3_fl.symmetry.explain import moved_share
from c2m3_fl.symmetry.prove import largest_change
from c2m3_fl.symmetry.spec import PermutationSpec

_QUICK = (
    "squeezenet1_1",
    "mobilenet_v3_large",
    "shufflenet_v2_x1_0",
    "vit_b_16",
    "swin_t",
    "maxvit_t",
    "decoder",
    "lstm",
)
_ROW = re.compile(r"\| (?P<name>\w+) \|[^|]*\|[^|]*\| (?P<groups>\d+) \| (?P<share>[\d.]+)% \| (?P<change>\S+) \|")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in _QUICK else [pytest.mark.slow]) for n in ARCHITECTURES]
)
def test_small_versions_move_nearly_all_and_keep_their_function(name: str) -> None:
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    network, example = architecture.small(), architecture.example(architecture.small_shape)
    spec = PermutationSpec.from_module(network, example, prove=False)
    assert largest_change(spec, network, (example,), {}) < 1e-9
    assert moved_share(spec) > 0.99
    assert not [pin for pin in spec.pins if "no rule" in pin.reason]


def test_the_page_lists_every_architecture_and_no_change() -> None:
    rows = {row["name"]: row for row in _ROW.finditer(PAGE.read_text(encoding="utf-8"))}
    assert list(rows) == list(ARCHITECTURES)
    assert all(float(row["change"]) < 1e-9 for row in rows.values())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("decoder", "lstm") else [pytest.mark.slow]) for n in ARCHITECTURES]
)
def test_the_page_says_what_tracing_finds(name: str) -> None:
    rows = {row["name"]: row for row in _ROW.finditer(PAGE.read_text(encoding="utf-8"))}
    found = measure(name)
    assert (rows[name]["groups"], rows[name]["share"]) == (str(found.groups), f"{100 * found.share:.2f}")
    assert found.change < 1e-9
