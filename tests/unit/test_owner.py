"""Owners of records, and the detection of dead owners."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pycontain._state.owner import Owner, claim_dead
from pycontain._state.paths import Roots

DEAD = """
import sys, os
from pycontain._state.owner import Owner
from pycontain._state.paths import Roots
print(Owner(Roots.of(sys.argv[1])).name, flush=True)
os._exit(9)
"""


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots.of(tmp_path)


def _dead(roots: Roots) -> str:
    top = os.path.dirname(roots.data)
    done = subprocess.run([sys.executable, "-c", DEAD, top], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    return done.stdout.strip()


def test_a_live_owner_is_not_claimed(roots: Roots) -> None:
    owner = Owner(roots)
    assert claim_dead(roots) == []
    owner.close()


def test_a_dead_owner_is_claimed_once(roots: Roots) -> None:
    name = _dead(roots)
    claims = claim_dead(roots)
    assert [claim.owner for claim in claims] == [name]
    assert claim_dead(roots) == []
    claims[0].release(removed=False)
    again = claim_dead(roots)
    assert [claim.owner for claim in again] == [name]
    os.rmdir(os.path.join(roots.data, "live", name))
    again[0].release(removed=True)
    assert claim_dead(roots) == []
    assert os.listdir(os.path.join(roots.run, "owners")) == []


def test_directories_that_outlived_a_reboot_are_claimed(roots: Roots) -> None:
    name = _dead(roots)
    os.unlink(os.path.join(roots.run, "owners", f"{name}.lock"))
    (claim,) = claim_dead(roots)
    assert claim.owner == name
    claim.release(removed=True)


def test_an_owner_that_comes_is_never_seen_dead(roots: Roots) -> None:
    """Owners appear in one thread while another claims: not one of them may be claimed."""
    stop = threading.Event()
    claimed: list[str] = []

    def claim() -> None:
        while not stop.is_set():
            claimed.extend(one.owner for one in claim_dead(roots))

    Owner(roots).close()  # the directories exist
    thread = threading.Thread(target=claim)
    thread.start()
    for _ in range(300):
        Owner(roots).close()
    stop.set()
    thread.join()
    assert claimed == []
