"""Well-known networks: the page in the docs holds, and small versions are found to move nearly everything.

Networks of packages that are not installed are left out.
"""

from __future__ import annotations

import re

import pytest

from benchmarks.architectures import PAGE, measure, planted_change
from benchmarks.zoo import ARCHITECTURES
from c2m3_fl.symmetry import PermutationSpec, moved_share

_QUICK = {
    *("squeezenet1_1", "mobilenet_v3_large", "shufflenet_v2_x1_0", "vit_b_16", "swin_t", "maxvit_t"),
    *("decoder", "lstm", "mlp", "unet", "unet_3d", "vae", "densenet_3d", "tcn", "discriminator", "experts", "graph"),
    *("bert", "gpt2", "llama", "mixtral", "t5", "wav2vec2", "bert_lora"),
}
_AGAIN = {"decoder", "lstm", "graph", "experts", "tcn", "gpt2", "bert_lora"}
_ROW = re.compile(
    r"\| (?P<name>\w+) \|[^|]*\|[^|]*\| (?P<groups>\d+) \| (?P<share>[\d.]+)% \| (?P<change>\S+) \| (?P<repair>[^|]*) \|"
)
_IN_SINGLE_PRECISION = {"mixtral": 1e-5}


def _rows() -> dict[str, re.Match[str]]:
    return {row["name"]: row for row in _ROW.finditer(PAGE.read_text(encoding="utf-8"))}


def _some(quick: set[str]) -> list[object]:
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in ARCHITECTURES]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _some(_QUICK))
def test_small_versions_move_nearly_all_and_keep_their_function(name: str) -> None:
    architecture = ARCHITECTURES[name]
    network, args, kwargs = architecture.build(small=True)
    whole = PermutationSpec.from_module(network, *args, kwargs=kwargs, prove=False)
    sent = architecture.sent
    spec = whole if sent is None else whole.restricted([tensor for tensor in whole.tensors if sent(tensor)])
    assert spec.groups
    assert planted_change(whole, spec, network, args, kwargs) < _IN_SINGLE_PRECISION.get(name, 1e-9)
    assert moved_share(spec) > architecture.least
    assert not [pin for pin in spec.pins if "no rule" in pin.reason]


def test_the_page_lists_every_architecture_and_no_change() -> None:
    rows = _rows()
    assert len(rows) >= 60
    assert [name for name in rows if name in ARCHITECTURES] == list(ARCHITECTURES)
    assert f"in {len(rows)} networks" in PAGE.read_text(encoding="utf-8")
    assert all(float(row["change"]) < _IN_SINGLE_PRECISION.get(name, 1e-9) for name, row in rows.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _some(_AGAIN))
def test_the_page_says_what_tracing_finds(name: str) -> None:
    row, found = _rows()[name], measure(name)
    assert (row["groups"], row["share"]) == (str(found.groups), f"{100 * found.share:.2f}")
    assert found.change < _IN_SINGLE_PRECISION.get(name, 1e-9)
    assert row["repair"] == found.repair
