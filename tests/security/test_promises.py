"""E29, X01, X03 to X07: guarantees of the engine as a whole."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from pycontain import Bind, CgroupLimits, Container, Engine, Image, PycontainError, Security, UnsupportedError
from pycontain._objects.engine import default_engine
from pycontain._security import capabilities

FULL = bool(os.environ.get("PYC_SECURITY_FULL"))
TROJANS = "nsenter tar xz unpigz pigz gzip zstd getent git newuidmap newgidmap mount umount ip nft cp cat true id".split()


@pytest.mark.case("E29")
def test_no_program_of_an_image_runs_outside(root: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    trojan = f"#!/bin/busybox sh\n/bin/busybox readlink /proc/self/ns/mnt >> {marker} 2>/dev/null; exec /bin/busybox true\n"
    for name in TROJANS:
        path = root / "bin" / name
        path.unlink(missing_ok=True)
        path.write_text(trojan)
        path.chmod(0o755)
    (root / "lib").mkdir()
    for name in ("libnss_files.so.2", "libc.so.6", "ld-linux-x86-64.so.2"):
        (root / "lib" / name).write_text("no library")
    (root / "etc" / "ld.so.preload").write_text("/lib/libc.so.6")
    (root / "etc" / "nsswitch.conf").write_text("passwd: evil\n")
    container = Container(Image.from_rootfs(root), command=["/bin/true"])
    container.start()
    container.wait(10)
    container.remove()
    with Container(Image.from_rootfs(root)) as one:
        many = one._engine._session.features.privileged or one._engine._session.sub_ids
        one.exec(["/bin/cat"], input="x", user="bob:more" if many else "root")
        one.exec("exit 3", shell=True)
        with one.popen(["/bin/id"], pty=True) as process:
            process.wait()
        if one._engine._session.cgroups.usable:
            one.stats()
        if one._engine._session.cgroups.unified:
            one.pause()
            one.unpause()
        assert one.isolation
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "file.gz").write_bytes(b"\x1f\x8b")
        one.copy_in(tmp_path / "in", "/tmp", owner="bob" if many else None)
        one.copy_out("/tmp/in", tmp_path / "out")
        one.path("/tmp/in/file.xz").write_text("x")
        assert one.path("/etc/ld.so.preload").read_text() == "/lib/libc.so.6"
        one.path("/tmp/in/file.xz").unlink()
        assert list(one.path("/tmp").rglob("*.gz"))
        one.stop()
    assert not marker.exists()


@pytest.mark.control("E29")
def test_trojan_on_the_host_is_detected(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    os.system(f"readlink /proc/self/ns/mnt >> {marker}")
    assert marker.exists()


MISSING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "time namespace": ({"time_namespace": False}, {"security": Security.SANDBOX.evolve(optional=())}),
    "landlock": ({"landlock": 0}, {"security": Security.SANDBOX.evolve(optional=())}),
}
"""Missing host features, each with the options of a container that needs it."""


@pytest.mark.case("X01")
@pytest.mark.parametrize("what", list(MISSING))
def test_a_control_that_is_missing_is_an_error(what: str, tmp_path: Path) -> None:
    lacks, options = MISSING[what]
    with Engine(tmp_path) as engine:
        engine._session.features = attrs.evolve(engine._session.features, **lacks)
        with pytest.raises(UnsupportedError) as caught:
            Container(engine=engine, **options).start()
        assert caught.value.feature
        optional = Security.SANDBOX.evolve(optional=("landlock", "time"))
        with Container(engine=engine, security=optional) as container:
            assert container.isolation.missing


@pytest.mark.case("X01")
def test_unenforceable_limit_is_an_error(tmp_path: Path) -> None:
    with Engine(tmp_path) as engine:
        empty = attrs.evolve(engine._session.cgroups.layout, unified=None, legacy={}, controllers=frozenset())
        engine._session.cgroups.layout = empty
        engine._session.cgroups.unified = None
        for options in ({"memory": "64M"}, {"cpus": 1}, {"pids": 20}, {"limits": CgroupLimits(io_weight=10)}):
            with pytest.raises(UnsupportedError):
                Container(engine=engine, **options).start()
        assert os.listdir(engine._session.owner.live) == []


@pytest.mark.control("X01")
def test_available_features_are_no_error(tmp_path: Path) -> None:
    with Engine(tmp_path) as engine, Container(engine=engine) as container:
        assert container.exec(["true"]).returncode == 0


ODD = [
    "-x",
    "--help",
    "a\nb",
    "a b",
    "a;b",
    "$(id)",
    "`id`",
    "a\tb",
    "é",
    "\u202e",
    "x" * 10_000,
    "\udc80",
    "'",
    '"',
    "\\",
    "*",
]


@pytest.mark.case("X03")
def test_odd_text_is_data() -> None:
    code = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])) + b'\\0' + os.environb[b'ODD'])"
    with Container(labels={"-l": "\n"}) as container:
        for text in ODD:
            done = container.exec([sys.executable, "-c", code, text, text], env={"ODD": text}, text=False)
            assert done.stdout == b"\0".join([os.fsencode(text)] * 3)
        with pytest.raises(ValueError, match="NUL"):
            container.exec(["echo", "a\0b"])
        for env in ({"A": "a\0b"}, {"A=B": "x"}, {"": "x"}, {"A\0": "x"}):
            with pytest.raises(ValueError, match="env must have names without"):
                container.exec(["true"], env=env)
        with pytest.raises((ValueError, PycontainError)):
            container.exec(["true"], workdir="relative")
        with pytest.raises((ValueError, PycontainError, OSError)):
            container.exec(["x" * (3 << 20)])
        assert container.exec(["echo", "on"]).stdout == "on\n"


@pytest.mark.case("X06")
@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a/b",
        ".hidden",
        "-x",
        "é",
        "x" * 300,
        "a\0b",
        "a b",
        "a\nb",
        "%2e%2e",
        "~",
    ],
)
def test_names_that_are_paths_are_refused(name: str, engine: Engine) -> None:
    before = os.listdir(engine._session.owner.live)
    if name:
        with pytest.raises(ValueError, match="name"):
            Container(name=name)
    with pytest.raises(ValueError, match=r".*"):
        Container(hostname=name or " ")
    assert os.listdir(engine._session.owner.live) == before


@pytest.mark.control("X03", "X06")
def test_plain_text_and_names_pass() -> None:
    with Container(name="pyc-plain.name_1", hostname="host-1") as container:
        assert container.exec(["echo", "-n", "x"]).stdout == "x"


def _random_security(chance: random.Random) -> Security:
    names = sorted(capabilities.NAMES)
    more: dict[str, Any] = {"capabilities": chance.sample(names, chance.choice((0, 0, 1, 3)))}
    if chance.random() < 0.3:
        more["seccomp"] = None
    more["landlock"] = chance.random() < 0.7
    more["no_new_privs"] = chance.random() < 0.8
    return Security.SANDBOX.evolve(**more)


VIEW = """
import json, os
status = dict(line.rstrip().partition(':\\t')[::2] for line in open('/proc/self/status'))
root = os.statvfs('/')
print(json.dumps({'caps': int(status['CapBnd'], 16), 'nnp': status['NoNewPrivs'] == '1', 'filter': status['Seccomp'] == '2',
    'ns': sorted(os.listdir('/proc/self/ns')), 'read_only': bool(root.f_flag & 1), 'hostname': os.uname().nodename}))
"""


@pytest.mark.case("X05")
def test_isolation_report_matches_the_guest() -> None:
    import json

    chance = random.Random(7)
    for _ in range(200 if FULL else 25):
        security = _random_security(chance)
        read_only = chance.random() < 0.5
        with Container(security=security, read_only=read_only) as container:
            done = container.exec([sys.executable, "-c", VIEW])
            assert done.returncode == 0, (done, security)
            inside = json.loads(done.stdout)
            report = container.isolation
            bits = sum(1 << capabilities.NAMES.index(name) for name in report.capabilities)
            assert inside["caps"] == bits
            assert inside["nnp"] == report.no_new_privs
            assert inside["filter"] == report.seccomp
            assert inside["read_only"] == report.read_only
            assert report.network == "none"


@pytest.mark.control("X05")
def test_a_report_of_another_container_is_not() -> None:
    with Container() as one, Container(security=Security.DOCKER) as other:
        assert one.isolation != other.isolation


def _reach(security: Security, read_only: bool) -> set[str]:
    """Return which actions of a fixed list a command of this container can do."""
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for n in range(41):
    if int([l for l in open('/proc/self/status') if l.startswith('CapEff')][0].split()[1], 16) >> n & 1: print('cap%d' % n)
for name, number in (('unshare', 272), ('keyctl', 250), ('bpf', 321), ('ptrace', 101), ('mount', 165), ('chroot', 161)):
    ctypes.set_errno(0); libc.syscall(number, -1, -1, -1, -1, -1)
    if ctypes.get_errno() not in (1, 38): print(name)
for top in ('/', '/etc', '/tmp', '/usr', '/proc/sys/kernel'):
    try: os.close(os.open(top + '/pyc-x', os.O_CREAT | os.O_WRONLY)); print('write', top)
    except OSError: pass
"""
    with Container(security=security, read_only=read_only) as container:
        return set(container.exec([sys.executable, "-c", code]).stdout.splitlines())


@pytest.mark.case("X04")
def test_a_restriction_never_widens() -> None:
    chance = random.Random(11)
    for _ in range(60 if FULL else 8):
        loose = _random_security(chance)
        stricter: dict[str, Any] = chance.choice(
            [
                {"capabilities": ()},
                {"seccomp": Security.SANDBOX.seccomp},
                {"landlock": True},
                {"no_new_privs": True},
                {"masked_paths": (*loose.masked_paths, "/etc")},
            ]
        )
        before = _reach(loose, read_only=False)
        capabilities_before = {word for line in before for word in line.split() if word.startswith("cap")}
        after = _reach(loose.evolve(**stricter), read_only=chance.random() < 0.5)
        words = {word for line in after for word in line.split() if word.startswith("cap")}
        assert words <= capabilities_before
        assert {line for line in after if not line.startswith("cap")} <= {
            line for line in before if not line.startswith("cap")
        }


@pytest.mark.control("X04")
def test_a_relaxation_widens() -> None:
    assert not _reach(Security.SANDBOX.evolve(seccomp=None), False) <= _reach(Security.SANDBOX, False)


@pytest.mark.case("X07")
def test_relaxing_wants_a_named_argument(engine: Engine) -> None:
    with pytest.raises(TypeError):
        Container(privileged=True)  # type: ignore[call-arg]
    for place in ("/", "/proc", "/dev", "/sys"):
        with pytest.raises(ValueError, match="mount"):
            Container(mounts={place: Bind("/tmp")})
    with Container(security=Security.SANDBOX.evolve(capabilities={"SYS_ADMIN"})) as container:
        assert "SYS_ADMIN" in container.isolation.capabilities
    with Container(network="host") as container:
        assert container.isolation.network == "host"
        assert "net" not in container.isolation.namespaces
    with Container() as container:
        assert container.isolation.capabilities == ()
        assert container.isolation.network == "none"
        assert "net" in container.isolation.namespaces
    assert default_engine() is engine


@pytest.mark.control("X07")
def test_a_relaxation_is_in_the_report() -> None:
    with Container(security=Security.SANDBOX.evolve(seccomp=None)) as container:
        assert not container.isolation.seccomp
