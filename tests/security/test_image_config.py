"""P17, P18: hostile image configurations and the users that they name."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycontain import Container, Engine, Image, ImageError, PycontainError
from tests.security.conftest import Canary, kept
from tests.support.images import (
    Entry,
    configuration,
    directory,
    file,
    oci_layout,
    symlink,
    tar,
)
from tests.support.roots import make_root

UP = "../" * 24


def _busybox(root: Path) -> bytes:
    """Return a layer with what a container needs to run anything."""
    entries: list[Entry | bytes] = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            entries.append(symlink(name, os.readlink(path)))
        elif path.is_dir():
            entries.append(directory(name))
        else:
            entries.append(file(name, path.read_bytes(), mode=0o755))
    return tar(entries)


# ---- P17 --------------------------------------------------------------------------------------------------

_LABELS = {f"label{at}": "x" * 20 for at in range(100_000)}
KEPT: dict[str, dict[str, Any]] = {
    "volumes that are the engine's": {"Volumes": {path: {} for path in ("/", "/proc", "/dev", "/sys", "/etc")}},
    "volumes that lead out": {"Volumes": {"..": {}, "/../../etc": {}, "/a/../../..": {}, "relative": {}, "": {}}},
    "volumes with odd names": {"Volumes": {"/a\nb": {}, "/a,b:c": {}, "/a\\b": {}, "/é": {}}},
    "a working directory that leads out": {"WorkingDir": f"/{UP}etc"},
    "a relative working directory": {"WorkingDir": "../.."},
    "variables with newlines": {"Env": ["A=1\n2", "B=\x1b[2J", "LD_PRELOAD=/evil.so", "PATH=/bin"]},
    "variables without names": {"Env": ["=x", "", "NOVALUE", "PATH=/bin"]},
    "100000 labels": {"Labels": _LABELS},
    "labels that look like controls": {
        "Labels": {"io.containerd.runc.v2.binary": "/evil", "privileged": "true", "pycontain.security": "none"}
    },
    "what builds": {"OnBuild": ["RUN touch /evil"], "Shell": ["/evil"]},
    "what looks like policy": {"Privileged": True, "CapAdd": ["ALL"], "SecurityOpt": ["seccomp=unconfined"]},
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    "a NUL in a variable": {"Env": ["A=\0"]},
    "a NUL in the working directory": {"WorkingDir": "/\0"},
    "a NUL in a volume": {"Volumes": {"/\0": {}}},
    "a NUL in the command": {"Cmd": ["a\0b"]},
    "half a character": {"Env": ["A=\ud800"]},
    "a user that is no text": {"User": 0},
    "a user of 2^64": {"User": str(1 << 64)},
    "a user with a newline": {"User": "a\nb"},
    "variables that are no list": {"Env": "A=1"},
    "variables that are numbers": {"Env": [1]},
    "volumes that are a list": {"Volumes": ["/a"]},
    "labels that are numbers": {"Labels": {"a": 1}},
    "a command that is a text": {"Cmd": "sh"},
    "a signal of its own": {"StopSignal": "SIGEVIL"},
    "a signal of 2^31": {"StopSignal": str(1 << 31)},
    "a configuration that is a list": {"Healthcheck": []},
}


def _configured(engine: Engine, layer: bytes, config: object, top: Path, **more: Any) -> Image:
    whole = configuration([layer], config=config, **more)
    return Image.from_oci_layout(oci_layout([layer], config=whole).write(top), engine=engine)


_LOOK = (
    "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; while read a b c; do echo $a $c; done < /proc/self/uid_map; "
    "cut -d' ' -f3- /proc/self/mountinfo | grep -E ' /(proc|sys|dev|)( |/)' | cut -d' ' -f3,4 | sort; "
    "ls -d /evil 2>&1; pwd"
)


def _state(image: Image, engine: Engine, workdir: str = "/") -> list[str]:
    with Container(image, ["sleep", "60"], engine=engine) as container:
        assert container.exec(["pwd"]).stdout.strip().startswith("/")
        return str(container.exec(["/bin/sh", "-c", f"cd {workdir}; {_LOOK}"]).stdout).splitlines()


@pytest.mark.case("P17")
def test_image_configuration_cannot_change_controls(shop: Engine, tmp_path: Path, canary: Canary) -> None:
    root = make_root(tmp_path / "base")
    (root / "bin" / "grep").symlink_to("busybox")
    for name in ("cut", "sort", "pwd"):
        (root / "bin" / name).symlink_to("busybox")
    layer = _busybox(root)
    plain = _state(_configured(shop, layer, {}, tmp_path / "plain"), shop)
    assert any(line.startswith("CapBnd") for line in plain)
    unlike = {}
    for at, (name, config) in enumerate(KEPT.items()):
        image = _configured(shop, layer, config, tmp_path / str(at))
        if (found := _state(image, shop)) != plain:
            unlike[name] = {*found} ^ {*plain}
        image.remove(force=True)
    assert unlike == {}


@pytest.mark.control("P17")
def test_other_controls_would_be_seen(shop: Engine, tmp_path: Path) -> None:
    from pycontain import Security

    root = make_root(tmp_path / "base")
    image = Image.from_rootfs(root)
    said = []
    for security in (Security.SANDBOX, Security.SANDBOX.evolve(seccomp=None)):
        with Container(image, ["sleep", "60"], security=security, engine=shop) as container:
            said.append(container.exec(["cat", "/proc/self/status"]).stdout.split("Seccomp:")[1].split()[0])
    assert said[0] != said[1]


@pytest.mark.case("P17")
def test_configurations_that_cannot_be_meant_are_refused(shop: Engine, tmp_path: Path) -> None:
    found = []
    for at, (name, config) in enumerate(REFUSED.items()):
        try:
            _configured(shop, tar([file("a")]), config, tmp_path / str(at)).remove(force=True)
        except ImageError:
            pass
        else:
            found.append(name)
        for image in shop.images:
            image.remove(force=True)
    assert found == []
    shop.sweep()
    assert kept(shop) == {}


@pytest.mark.case("P17")
@pytest.mark.parametrize("place", ["rootfs", "architecture", "config", "history"])
@pytest.mark.parametrize("value", [None, 1, True, "text", [1], {"a": 1}])
def test_parts_of_other_types_are_refused_or_say_nothing(
    place: str, value: object, shop: Engine, tmp_path: Path
) -> None:
    layer = tar([file("a")])
    try:
        Image.from_oci_layout(
            oci_layout([layer], config=configuration([layer], **{place: value})).write(tmp_path / "layout"),
            engine=shop,
        )
    except ImageError:
        assert shop.images == []


# ---- P18 --------------------------------------------------------------------------------------------------


def _huge(path: Path, line: bytes, times: int) -> None:
    with open(path, "wb") as out:
        for _ in range(times // 10_000):
            out.write(line * 10_000)
        out.write(b"bob:x:1000:1000::/:/bin/sh\n")


def _sparse(path: Path) -> None:
    path.write_bytes(b"bob:")
    os.truncate(path, 1 << 30)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _pipe_and_link(path: Path) -> None:
    os.mkfifo(path.with_name("p"))
    path.symlink_to("p")


ODD: dict[str, Callable[[Path], object]] = {
    "a link to outside": lambda path: path.symlink_to("/canary/passwd"),
    "a link up": lambda path: path.symlink_to(f"{UP}etc/passwd"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "a link to a pipe": _pipe_and_link,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a process's memory": lambda path: path.symlink_to("/proc/self/mem"),
    "a directory": lambda path: path.mkdir(),
    "missing": lambda path: None,
    "a line of a gibibyte": _sparse,
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe:x:1:1\nb\xc3ob:x:2:2::/:\n"),
    "lines that are not whole": lambda path: path.write_bytes(b"bob\nbob:\nbob:x\nbob:x:\nbob:x:-1:0\nbob:x:99999999999:0\n"),
    "NUL bytes": lambda path: path.write_bytes(b"bob\0:x:0:0::/:\n" * 10),
}  # fmt: skip
SECONDS = 2.0


@pytest.mark.case("P18")
@pytest.mark.parametrize("name", list(ODD))
@pytest.mark.parametrize("which", ["passwd", "group"])
def test_users_are_looked_up_only_in_files(name: str, which: str, root: Path, canary: Canary) -> None:
    _replace(root / "etc" / which, ODD[name])
    user = "bob" if which == "passwd" else "0:more"
    with Container(Image.from_rootfs(root), memory=None) as container:
        begun = time.monotonic()
        with pytest.raises(PycontainError):
            container.exec(["id"], user=user)
        assert time.monotonic() - begun < SECONDS
        # Not `id`, which reads the file itself.
        assert container.exec(["echo", "0"], user="0").stdout == "0\n"


@pytest.mark.case("P18")
def test_ten_million_lines_are_read_in_time_and_little_memory(root: Path, engine: Engine) -> None:
    if not engine._session.features.privileged and not engine._session.sub_ids:
        pytest.skip("the single-id map has one id inside")
    _huge(root / "etc" / "passwd", b"x:x:1:1::/:\n", 10_000_000)
    limited = {"memory": "48m"} if engine._session.cgroups.layout.has("memory") else {}
    with Container(Image.from_rootfs(root), **limited) as container:  # type: ignore[arg-type]
        begun = time.monotonic()
        try:
            assert container.exec(["id", "-u"], user="bob").stdout == "1000\n"
        except PycontainError as error:
            assert "passwd" in str(error)  # noqa: PT017  either is right
        assert time.monotonic() - begun < SECONDS


@pytest.mark.case("P18")
def test_lines_of_other_systems(root: Path, engine: Engine) -> None:
    if not engine._session.features.privileged and not engine._session.sub_ids:
        pytest.skip("the single-id map has one id inside")
    (root / "etc" / "passwd").write_bytes(b"root:x:0:0::/:/bin/sh\r\nbob:x:1000:1000::/:/bin/sh\r\n")
    (root / "etc" / "group").write_bytes(b"root:x:0:\r\nmore:x:2000:bob\r\n")
    with Container(Image.from_rootfs(root)) as container:
        assert container.exec(["id", "-u"], user="bob").stdout == "1000\n"


@pytest.mark.control("P18")
def test_a_reader_that_follows_would_hang(root: Path) -> None:
    _replace(root / "etc" / "passwd", os.mkfifo)
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["cat", root / "etc" / "passwd"], check=False, timeout=0.5, capture_output=True)
