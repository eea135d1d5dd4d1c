"""Processes and their children are found and ended, and no others."""

import os
import subprocess
import sys
import time

from simulations.engines.processes import descendants, kill

PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"


def test_children_of_children_are_found_and_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT]) as parent:
        deadline = time.monotonic() + 20
        while not (family := descendants(parent.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(family) == 1
        assert {parent.pid, *family} <= set(descendants(os.getpid()))
        kill(family)
        assert parent.wait(20) == 0  # it waited for its child and nothing else
    kill(family)
