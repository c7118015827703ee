"""E01 to E04, E15 to E18, E26, E28: state that could leak into a container at exec."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from pathlib import Path

import pytest

from pycontain import Container, Engine, Image, NotFound, PycontainError, Security
from tests.security import attacks, weak

FULL = bool(os.environ.get("PYC_SECURITY_FULL"))


@pytest.fixture
def as_root(engine: Engine) -> None:
    """Skip where the attack wants root on the host."""
    if not engine._session.features.privileged:
        pytest.skip("the attack starts from root's groups and files")


@pytest.mark.case("E01")
def test_nothing_is_found_in_a_process_before_its_execve() -> None:
    assert attacks.scan_processes(10_000 if FULL else 300, 60 if FULL else 2) == []


@pytest.mark.control("E01")
def test_dumpable_agent_would_be_detected() -> None:
    assert weak.run("dumpable", "tests.security.attacks:scan_processes", 100, 2)


@pytest.mark.case("E02")
def test_the_engines_programs_cannot_be_written() -> None:
    from pycontain._kernel import _ffi

    programs = [sys.executable, str(_ffi.__file__)]
    before = [hashlib.sha256(Path(one).read_bytes()).hexdigest() for one in programs]
    assert attacks.write_to_programs(60 if FULL else 1) == []
    assert [hashlib.sha256(Path(one).read_bytes()).hexdigest() for one in programs] == before


@pytest.mark.control("E02")
def test_unsealed_program_would_be_writable() -> None:
    assert weak.run("unsealed", "tests.security.attacks:write_to_programs", 1)


@pytest.mark.case("E03")
def test_no_descriptor_is_a_way_out() -> None:
    assert attacks.enter_descriptors(1024 if FULL else 24) == []


@pytest.mark.control("E03")
def test_magic_links_would_be_entered() -> None:
    assert weak.run("magic-links", "tests.security.attacks:enter_descriptors", 12)


@pytest.mark.case("E04")
def test_three_streams_cross_and_nothing_else() -> None:
    assert attacks.count_descriptors() == []


@pytest.mark.control("E04")
def test_descriptors_that_stay_open_would_be_seen() -> None:
    assert weak.run("open-fds", "tests.security.attacks:count_descriptors")


STATUS = """
import os
keys = 'CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Groups Uid Gid'.split()
lines = dict(line.split(':', 1) for line in open('/proc/self/status'))
for key in keys: print(key, lines[key].split())
for name in 'mnt pid net ipc uts user cgroup time'.split(): print(name, os.readlink(f'/proc/self/ns/{name}'))
for name in 'uid_map gid_map limits oom_score_adj'.split(): print(name, open(f'/proc/self/{name}').read())
import ctypes
print('securebits', ctypes.CDLL(None).prctl(27))
print('umask', os.umask(0), 'root', os.stat('/').st_ino)
"""


def _view(container: Container, **options: object) -> dict[str, str]:
    output = container.exec([sys.executable, "-c", STATUS], **options).stdout  # type: ignore[call-overload]
    return {line.split(" ", 1)[0]: line for line in output.splitlines() if line}


@pytest.mark.case("E15", "L14")
def test_every_command_has_the_same_controls() -> None:
    with Container() as container:
        first = _view(container)
        assert len(first) > 20
        assert first["CapEff"] == "CapEff ['0000000000000000']"
        process = container.popen([sys.executable, "-c", STATUS])
        assert process.communicate()[0] == container.exec([sys.executable, "-c", STATUS]).stdout
        try:
            hungry = "x = bytearray(2 << 30)"
            container.exec([sys.executable, "-c", hungry])
        finally:
            assert _view(container) == first
    command = [sys.executable, "-c", STATUS]
    with Container(command=command, init=False) as container:
        container.wait(20)
        text = b"".join(container.logs()).decode()
    alone = {line.split(" ", 1)[0]: line for line in text.splitlines() if line}
    # Of a container of its own: its namespaces and ids differ, nothing else does.
    own = {*"mnt pid net ipc uts user cgroup time uid_map gid_map root umask".split(), ""}
    assert {key for key in first if alone.get(key) != first[key]} <= own


@pytest.mark.control("E15", "L14")
def test_other_controls_would_be_seen() -> None:
    with Container() as one, Container(security=Security.DOCKER) as other:
        assert _view(one)["CapEff"] != _view(other)["CapEff"]


@pytest.mark.case("E16")
def test_no_group_of_the_caller_crosses(as_root: None) -> None:
    assert attacks.groups_of_the_caller() == []


@pytest.mark.control("E16")
def test_groups_that_are_kept_would_be_seen(as_root: None) -> None:
    assert weak.run("groups", "tests.security.attacks:groups_of_the_caller")


@pytest.mark.case("E16")
def test_negative_group_permissions_hold(root: Path, engine: Engine) -> None:
    if engine._session.sub_ids == 0 and not engine._session.features.privileged:
        pytest.skip("the single-id map has one group inside")
    if not engine._session.features.privileged:
        pytest.skip("files of three groups are made by root")
    for group in (0, 1000, 2000):
        path = root / f"of{group}"
        path.write_text("x")
        os.chown(path, 0, group)
        path.chmod(0o604)
    with Container(Image.from_rootfs(root)) as container:
        for user, denied in (("bob", {"1000", "2000"}), ("1000:2000", {"2000"}), ("1000:7", set())):
            for number in ("0", "1000", "2000"):
                done = container.exec(["cat", f"/of{number}"], user=user)
                assert (done.returncode != 0) == (number in denied), (user, number)


WRONG_USERS = (
    "-1 -0 4294967295 4294967296 4294967297 8589934592 18446744073709551616 99999999999999999999 0x0 0x3e8 "
    "1e3 1.0 +1 1000: :1000 : :: 0:-1 0:4294967295 0:4294967296 0:0x0 no-such-name bob:no-such-name "
    "no-such-name:0 bob:more:0 1000:1000:1000 \u0660 \u2460 \uff10 root\t \troot root\n"
).split(" ")
RIGHT_USERS = {
    "0": (0, 0),
    "root": (0, 0),
    "bob": (1000, 1000),
    "1000": (1000, 1000),
    "00": (0, 0),
    "007": (7, 0),
    "12": (12, 0),
    "12:0": (12, 0),
    "0:12": (0, 12),
    "1000:2000": (1000, 2000),
    "bob:more": (1000, 2000),
    "bob:2000": (1000, 2000),
    "bob:root": (1000, 0),
    "root:bob": (0, 1000),
    "root:more": (0, 2000),
    "60000": (60000, 0),
    "65535": (65535, 0),
}


@pytest.mark.case("E17")
@pytest.mark.parametrize("user", [one for one in WRONG_USERS if one])
def test_invalid_user_is_refused(user: str, root: Path) -> None:
    with Container(Image.from_rootfs(root)) as container:
        with pytest.raises((ValueError, NotFound, PycontainError)):
            container.exec(["id"], user=user)
        with pytest.raises((ValueError, NotFound, PycontainError)):
            Container(Image.from_rootfs(root), command=["id"], user=user).start()


@pytest.mark.case("E17")
def test_user_specifications(root: Path, engine: Engine) -> None:
    if engine._session.sub_ids == 0 and not engine._session.features.privileged:
        pytest.skip("the single-id map has one id inside")
    passwd = root / "etc" / "passwd"
    passwd.write_text(passwd.read_text() + "12:x:0:0::/:/bin/sh\n")
    with Container(Image.from_rootfs(root)) as container:
        for user, wanted in RIGHT_USERS.items():
            script = "id -u; id -g"
            output = container.exec(["sh", "-c", script], user=user).stdout.split()
            assert tuple(map(int, output)) == wanted, user


@pytest.mark.control("E17")
def test_wrong_user_id_would_be_detected(root: Path, engine: Engine) -> None:
    with Container(Image.from_rootfs(root)) as container:
        assert container.exec(["id", "-u"], user="0").stdout == "0\n"
        if engine._session.features.privileged:
            assert container.exec(["id", "-u"], user="1").stdout == "1\n"


@pytest.mark.case("E18")
def test_the_callers_terminal_is_out_of_reach() -> None:
    assert attacks.push_into_the_terminal() == []


@pytest.mark.control("E18")
def test_terminal_would_be_reachable_without_own_sessions() -> None:
    assert weak.run("terminal", "tests.security.attacks:push_into_the_terminal")


@pytest.mark.case("E18")
def test_nothing_is_pushed_into_a_terminal_of_its_own() -> None:
    code = """
import fcntl, os, sys
for fd in range(3):
    for command in (0x5412, 0x541C, 0x5412 | 1 << 32):
        try:
            fcntl.ioctl(fd, command & 0xFFFFFFFFFFFFFFFF if command < 1 << 32 else command, b'x')
            print('pushed')
        except (OSError, OverflowError) as error:
            print(getattr(error, 'errno', 0))
os.kill(0, 28)
"""
    with Container() as container:
        process = container.popen([sys.executable, "-c", code], pty=True)
        output = process.communicate()[0]
    assert "pushed" not in output
    assert output.split().count("1") >= 6


@pytest.mark.case("E26")
def test_no_variable_crosses_or_is_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYC_SECRET", "of-the-host")
    wrong: list[str] = []

    def work(mark: str) -> None:
        for turn in range(250 if FULL else 20):
            with Container(env={"MARK": f"{mark}{turn}"}) as container:
                output = container.exec("env; cat /proc/1/environ", shell=True).stdout
                if (
                    f"MARK={mark}{turn}\n" not in output
                    or output.count("MARK=") > 1
                    or "of-the-host" in output
                ):
                    wrong.append(output)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SEARCH = """
import re, sys
secret = bytes.fromhex(sys.argv[1])
found = []
def look(path):
    try:
        with open(path, 'rb') as file:
            if secret in file.read(1 << 22): found.append(path)
    except OSError: pass
for pid in ('1', 'self'):
    for name in ('environ', 'cmdline', 'mem', 'auxv', 'maps'): look(f'/proc/{pid}/{name}')
    try:
        regions = [line.split() for line in open(f'/proc/{pid}/maps')]
    except OSError: continue
    for region in regions:
        if 'r' not in region[1] or region[-1] in ('[vvar]', '[vsyscall]'): continue
        low, high = (int(part, 16) for part in region[0].split('-'))
        try:
            with open(f'/proc/{pid}/mem', 'rb') as memory:
                memory.seek(low)
                if secret in memory.read(min(high - low, 1 << 26)): found.append(region[0])
        except (OSError, ValueError, OverflowError): pass
print([one for one in found if 'cmdline' not in one])
"""


def _search(secret: bytes, **options: object) -> str:
    # In two halves, so that the search itself is not what is found.
    with Container(**options) as container:  # type: ignore[arg-type]
        code = SEARCH.replace(
            "bytes.fromhex(sys.argv[1])", "bytes(b ^ 1 for b in bytes.fromhex(sys.argv[1]))"
        )
        hidden = bytes(byte ^ 1 for byte in secret).hex()
        return str(container.exec([sys.executable, "-c", code, hidden]).stdout.strip())


@pytest.mark.case("E28")
def test_memory_of_the_caller_is_not_found() -> None:
    secret = os.urandom(24)
    copies = [bytes(bytearray(secret)) for _ in range(1000)]
    output = _search(secret)
    # The search finds only the copy that it computed in its own heap.
    assert "environ" not in output
    assert len(copies) == 1000
    with Container() as container:
        assert container.exec(["cat", "/proc/1/mem"]).returncode != 0
        assert container.exec(["cat", "/proc/1/environ"]).stdout == ""


@pytest.mark.control("E26", "E28")
def test_a_secret_that_is_passed_is_found() -> None:
    assert "/proc/self/environ" in _search(b"0123456789abcdef01234567", env={"S": "0123456789abcdef01234567"})
