"""Run the fuzzers for a few seconds each (PYC_FUZZ_SECONDS), and check that they find planted bugs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import make_corpus, make_layers, run

ROOT = Path(__file__).parent.parent.parent
SECONDS = int(os.environ.get("PYC_FUZZ_SECONDS", "10"))

pytestmark = pytest.mark.timeout(120 + 6 * SECONDS)

FORGETFUL = """
#define pc_{name}_check checked_{name}
#include "{check}"
#undef pc_{name}_check
#include <stdlib.h>
#include <string.h>

int
pc_{name}_check (const void *buffer, usize size)
{{
  struct pc_{name} *copy = malloc (size + 1);
  memcpy (copy, buffer, size);
  if (size >= sizeof *copy)
    memset (&copy->{field}, 0, sizeof copy->{field});
  int result = checked_{name} (copy, size);
  free (copy);
  return result;
}}
"""


def _run(
    module: str, seconds: int, tmp_path: Path, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run one of the fuzzers; skip where it says that it cannot run."""
    command = [sys.executable, "-m", f"tests.fuzz.{module}", "--seconds", str(seconds), *options]
    done = subprocess.run(
        [*command, "--artifacts", str(tmp_path / "findings")],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == run.SKIPPED:
        pytest.skip(done.stdout.strip().splitlines()[-1].partition("skipped: ")[2])
    return done


def test_corpus_matches_the_current_encoding() -> None:
    wanted = {f"{name}.bin": data for name, data in make_corpus.buffers().items()}
    assert {path.name: path.read_bytes() for path in make_corpus.CORPUS.iterdir()} == wanted


def test_archives_match_the_current_generator() -> None:
    wanted = {f"{name}.tar": data for name, data in make_layers.archives().items()}
    assert {path.name: path.read_bytes() for path in make_layers.LAYERS.iterdir()} == wanted


def test_accepted_plans_can_be_walked(tmp_path: Path) -> None:
    done = _run("run", SECONDS, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"plan=(\d+) security=(\d+) exec=(\d+)", done.stdout)
    assert counts is not None
    assert all(int(count) > 0 for count in counts.groups()), "a decoder accepted nothing: " + done.stdout


@pytest.mark.parametrize(("name", "field"), [("plan", "joins"), ("security", "rlimits"), ("exec", "groups")])
def test_a_check_that_forgets_a_reference_is_found(name: str, field: str, tmp_path: Path) -> None:
    broken = tmp_path / "check.c"
    broken.write_text(FORGETFUL.format(name=name, field=field, check=run.check_source()))
    done = _run("run", 30, tmp_path, PYC_CHECK_C=str(broken))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FINDING" in done.stdout


LAYERS = ("--target", "layers", "--max-len", "16384")

BREAKAGES = {
    "a map without bound": (
        "helper/archive/sparse.c",
        "  if (sparse->count == PC_TAR_REGIONS_MOST)\n    return -PC_UNPACK_SPARSE;\n",
        "",
    ),
    "a record longer than its header": ("helper/archive/pax.c", "length > size - begin || ", ""),
    "a name with the parent's": ("helper/archive/tree.c", "name[0] == '.' && name[1] == '.'", "0"),
    "links that lead out": ("helper/archive/beneath.c", "RESOLVE_IN_ROOT | ", ""),
    "times that are not written": (
        "helper/archive/header.c",
        "entry->nanoseconds > 0",
        "entry->nanoseconds > 1000000000",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_unpacker_is_found(name: str, tmp_path: Path) -> None:
    file, old, new = BREAKAGES[name]
    broken = tmp_path / "native"
    shutil.copytree(run.NATIVE, broken)
    text = (broken / file).read_text()
    assert text.count(old) == 1
    (broken / file).write_text(text.replace(old, new))
    done = _run("run", 60, tmp_path, *LAYERS, PYC_NATIVE=str(broken))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FINDING" in done.stdout


def test_any_bytes_are_read_unpacked_and_packed(tmp_path: Path) -> None:
    done = _run("run", SECONDS, tmp_path, *LAYERS)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"read=(\d+) unpacked=(\d+) packed=(\d+)", done.stdout)
    assert counts is not None
    assert all(int(count) > 0 for count in counts.groups()), done.stdout


def test_agent_and_launcher_survive_their_messages(tmp_path: Path) -> None:
    done = _run("agent_messages", SECONDS, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
