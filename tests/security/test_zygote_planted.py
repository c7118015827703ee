"""Modules planted by an earlier call or command, and forged answers that exhaust memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pycontain import CallError, Container
from pycontain._objects.exec import Invocation
from pycontain._objects.zygote import make
from pycontain._python.writer import COUNT, SIZE

pytest.importorskip("cloudpickle", reason="pycontain[call] is not installed")

STANDARD = ("json", "pickle", "struct", "ctypes", "types", "site", "encodings", "decimal", "zoneinfo")
"""Modules of the standard library that the interpreter loads for itself."""
PLANTED = "open('/tmp/ran', 'a').write(__name__); raise SystemExit(3)"


@pytest.fixture
def container() -> Iterator[Container]:
    with Container() as one:
        yield one


def _plant(container: Container, directory: str, names: tuple[str, ...]) -> None:
    for name in names:
        path = f"{directory}/{name}"
        script = f'mkdir -p "$(dirname {path})"; cat > {path}'
        container.exec(["sh", "-c", script], input=PLANTED, check=True)


def _ran(container: Container) -> str:
    return str(container.exec("cat /tmp/ran || true", shell=True).stdout)


def _forged(container: Container) -> list[str]:
    """Plant modules in every directory outside of the image, and return the modules that ran."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    names = tuple(f"{one}.py" for one in STANDARD)
    customs = ("sitecustomize.py", "usercustomize.py")
    home = str(container.exec("echo ~", shell=True).stdout).strip()
    cwd = str(container.exec("pwd", shell=True).stdout).strip()
    user = f"{home}/.local/lib/{version}/site-packages"
    _plant(container, cwd, (*names, *customs))
    _plant(container, user, (*names, *customs))
    code = PLANTED.replace("__name__", "'pth'")
    container.exec(["sh", "-c", f"cat > {user}/code.pth"], input=f"import os; {code}", check=True)
    try:
        assert make(container, (), None).call(len, "abc", timeout=30) == 3
    except CallError:
        pass
    return [_ran(container)] if _ran(container) else []


@pytest.mark.case("A05")
def test_planted_modules_are_not_loaded(container: Container) -> None:
    assert _forged(container) == []


@pytest.mark.control("A05")
def test_interpreter_that_is_not_isolated_would_load_them(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Invocation.of

    def without_isolation(argv: Any, *rest: Any) -> Any:
        return of(argv if isinstance(argv, str) else [one for one in argv if one not in ("-I", "-S")], *rest)

    monkeypatch.setattr(Invocation, "of", staticmethod(without_isolation))
    assert _forged(container)


@pytest.mark.case("A05")
def test_code_in_a_path_file_of_the_packages_is_not_run(container: Container) -> None:
    packages = container.call(lambda: [one for one in sys.path if one.endswith("-packages")])
    line = f"import os; {PLANTED.replace('__name__', repr('pth'))}"
    for directory in packages:
        container.exec(["sh", "-c", f"mkdir -p {directory}; cat > {directory}/code.pth"], input=line)
        container.exec(["sh", "-c", f"cat > {directory}/sitecustomize.py"], input=PLANTED)
    assert make(container, (), None).call(len, "abc") == 3
    assert _ran(container) == ""


FORGED = {
    "lists": b"lv" + COUNT.pack(0),
    "dicts": b"dv" + COUNT.pack(0) + b"v" + COUNT.pack(0),
    "sets": b"ev" + COUNT.pack(0),
    "nothing": b"N",
    "floats": b"f" + struct.pack("<d", 1.5),
    "integers": b"i" + struct.pack("<q", 1 << 40),
    "texts": b"s" + COUNT.pack(2) + b"ab",
    "bytes": b"bh" + SIZE.pack(2) + b"ab",
    "wide texts": b"s" + COUNT.pack(7) + "\U0001f600abc".encode(),
    "wide integers": b"I" + COUNT.pack(9) + b"\1" * 9,
    "times": b"H" + struct.pack("<BBBIB", 1, 1, 1, 1, 0) + b"N",
    "deques": b"qNv" + COUNT.pack(0),
    "identifiers": b"U" + b"1" * 16,
    "decimals": b"p" + COUNT.pack(1) + b"1",
    "paths": b"P\0" + COUNT.pack(1) + b"x",
    "exceptions": b"Xs" + COUNT.pack(9) + b"Exceptiontv" + COUNT.pack(0) + 2 * (b"v" + COUNT.pack(0)),
}
"""Values whose objects are large beside their bytes."""
MEASURE = """
import json, sys
from pycontain._python import codec, frames
def peak():
    # ru_maxrss keeps, through exec, the peak of the process that forked this one.
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
unit, size = bytes.fromhex(sys.argv[1]), int(sys.argv[2])
count = size // len(unit)
head = b"lv" + codec.COUNT.pack(count) + unit * count
answer = b"=" + codec.SIZE.pack(len(head)) + head
del head
before = peak()
try:
    value = codec.decode(answer)
    said = "read"
except codec.Malformed as error:
    said = str(error)
print(json.dumps([(peak() - before) >> 10, said]))
"""
MIB = 4
BOUND = 11 * MIB + 4


@pytest.mark.case("A09")
@pytest.mark.parametrize("kind", FORGED)
def test_answer_takes_a_bounded_multiple_of_its_size(kind: str) -> None:
    taken, said = _measured(kind, MEASURE)
    assert taken <= BOUND, said


@pytest.mark.control("A09")
def test_answer_that_is_not_counted_would_take_more() -> None:
    taken, _ = _measured("sets", MEASURE.replace("value =", "codec.BUDGET = 1000; value ="))
    assert taken > BOUND


def _measured(kind: str, program: str) -> tuple[int, str]:
    """Return the MiB that reading an answer takes, and the outcome."""
    command = [sys.executable, "-c", program, FORGED[kind].hex(), str(MIB << 20)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    taken, said = json.loads(done.stdout)
    return taken, said


def _forge(data: bytes) -> None:
    """Write a forged answer in place of the call's own."""
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if "pycontain-answer" in target:
            os.pwrite(int(name), data, 16)
            os.pwrite(int(name), struct.pack("<QQ", 1, len(data)), 0)
            os._exit(0)


@pytest.mark.case("A09")
def test_forged_answer_with_room_beyond_its_end_is_an_error(container: Container) -> None:
    for head in (b"lv" + COUNT.pack(1 << 31), b"li" + COUNT.pack(1 << 31) + b"q", b"bo" + SIZE.pack(1 << 60)):
        data = b"=" + SIZE.pack(len(head)) + head
        with pytest.raises(CallError, match="ends too early"):
            container.call(_forge, data)
