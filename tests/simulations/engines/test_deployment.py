"""The deployment on loopback: what proves identities, and the whole of it with a node that dies."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from simulations.engines.credentials import Credentials
from simulations.engines.deployment import demonstrate
from simulations.engines.processes import descendants

ROOT = Path(__file__).parents[3]


def test_the_server_is_vouched_for_by_the_authority_and_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    credentials, stranger = Credentials(tmp_path), Credentials(tmp_path / "other")
    certificate = x509.load_pem_x509_certificate(credentials.server().public.read_bytes())
    authority, other = (x509.load_pem_x509_certificate(each.authority.read_bytes()) for each in (credentials, stranger))
    certificate.verify_directly_issued_by(authority)
    with pytest.raises((InvalidSignature, ValueError)):
        certificate.verify_directly_issued_by(other)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "127.0.0.1" in [str(each) for each in names.get_values_for_type(x509.IPAddress)]


def test_nodes_get_key_pairs_of_their_own_that_only_this_user_can_read(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path)
    nodes = [credentials.node(number) for number in range(2)]
    publics = []
    for node in nodes:
        assert stat.S_IMODE(node.private.stat().st_mode) == 0o600
        key = load_ssh_private_key(node.private.read_bytes(), None).public_key()
        written = load_ssh_public_key(node.public.read_bytes())
        encoded = [each.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) for each in (key, written)]
        assert encoded[0] == encoded[1]
        publics.append(encoded[0])
    assert publics[0] != publics[1]


@pytest.mark.slow
def test_training_survives_a_node_that_is_killed_while_it_works(tmp_path: Path) -> None:
    record = demonstrate(tmp_path)
    assert [each["train"].get("c2m3-clients") for each in record["rounds"]] == [None, 3, 2, 2]
    assert record["rounds"][-1]["server"]["accuracy"] > 0.9
    assert json.loads((tmp_path / "deployment.json").read_text()) == record
    log = (tmp_path / "deployment.log").read_text()
    for text in ("Failed to activate SuperNode", "killed while it works", "1 failures", "[ROUND 3/3]"):
        assert text in log
    killed = re.search(r"\(processes ([\d, ]+)\)", log)
    superlink = re.search(r"SuperLink (\d+) answers", log)
    assert killed is not None
    assert superlink is not None
    for pid in (*killed[1].split(", "), superlink[1]):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [0, 1], ids=["while it starts", "with a node"])
def test_a_signal_to_end_leaves_neither_processes_nor_keys(nodes: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations", "deploy", "--nodes", "2", "--output", str(tmp_path / "results")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 120
            wanted = f"c2m3-engine-*/node-{nodes - 1}.log" if nodes else "c2m3-engine-*/superlink.log"
            while not list(tmp_path.glob(wanted)):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            family = descendants(process.pid)
            assert family
            process.terminate()
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not list(tmp_path.glob("c2m3-engine-*"))
    deadline = time.monotonic() + 10  # the system may need a moment to bury them
    while living := [pid for pid in family if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, living
        time.sleep(0.1)
