"""What is used of Flower without its promise: each test says what to change when a release moves it."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg

from c2m3_fl.federation import private

ROOT = Path(__file__).parents[2]
PROMISED = {
    "flwr.app",
    "flwr.clientapp",
    "flwr.clientapp.mod",
    "flwr.common",
    "flwr.serverapp",
    "flwr.serverapp.exception",
    "flwr.serverapp.strategy",
}
"""Flower's documented modules. Of ``flwr.common`` only the logger is used."""


def _imports(path: Path) -> set[tuple[str, str]]:
    """What a file imports from Flower: pairs of a module and a name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            found |= {(str(node.module), each.name) for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {(each.name, "") for each in node.names if each.name.split(".")[0] == "flwr"}
    return found


@pytest.mark.parametrize("package", ["c2m3_fl", "clients", "simulations"])
def test_one_file_holds_what_flower_may_move(package: str) -> None:
    files = [path for path in (ROOT / package).rglob("*.py") if path != Path(private.__file__).resolve()]
    assert files
    for path in files:
        for module, name in _imports(path):
            assert module in PROMISED, f"{path} imports {name!r} from {module}: move that to {private.__file__}"
            assert module != "flwr.common" or name == "log", f"{path} imports {name!r} from flwr.common"


def test_the_log_of_replies() -> None:
    there = getattr(FedAvg, "_check_and_log_replies", None)
    assert there is not None, "FedAvg logs replies by another method: change `with_content` in private.py"
    assert list(inspect.signature(there).parameters) == ["self", "replies", "is_train", "validate"], (
        "FedAvg._check_and_log_replies takes other arguments: change `with_content` in private.py"
    )


def test_the_key_of_clipping() -> None:
    for module in ("flwr.supercore.differential_privacy", "flwr.common.differential_privacy_constants"):
        try:
            key = importlib.import_module(module).KEY_CLIPPING_NORM
        except ImportError:
            continue
        assert key == private.CLIPPING_KEY, "clipping mods read another key: change CLIPPING_KEY in private.py"
        return
    pytest.fail("Flower keeps the key of its clipping mods elsewhere: find it and add the module to this test")


def test_the_identity_of_messages() -> None:
    private.act_as(5, run_id=9)
    try:
        message = Message(RecordDict(), 3, MessageType.TRAIN)
    except Exception as error:
        pytest.fail(f"no message can be made outside a run ({error}): change `act_as` in private.py")
    assert message.metadata.dst_node_id == 3
    assert private.empty_run(9).run_id == 9
