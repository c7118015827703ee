"""U21: files that a guest leaves on the host grant no rights there."""

from __future__ import annotations

import json
import os
import platform
import stat
import sys
from pathlib import Path

import pytest

from pycontain import Bind, Container, PathError, Security, Volume
from pycontain._security.syscalls import TABLE

PLANT = """
import ctypes, json, os, socket, stat, sys
top, numbers = sys.argv[1], json.loads(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
AT, CREATE, TMPFILE, PATH = -100, os.O_CREAT | os.O_WRONLY, os.O_TMPFILE | os.O_WRONLY, os.O_PATH
made = []
def call(name, *args):
    if name not in numbers:
        return -1
    values = [a.encode() if isinstance(a, str) else a for a in args]
    return libc.syscall(numbers[name], *[ctypes.c_long(v) if isinstance(v, int) else v for v in values])
def place(name):
    made.append(f'{top}/{name}')
    return made[-1]
def program(name):
    path = place(name)
    with open('/bin/true', 'rb') as source, open(path, 'wb') as target:
        target.write(source.read())
    os.chmod(path, 0o755)
    return path
def link(fd, name):
    call('linkat', AT, f'/proc/self/fd/{fd}', AT, place(name), 0x400)
for bits in (0o4755, 0o2755, 0o6777, 0o4755 | 1 << 32):
    call('chmod', program(f'chmod-{bits:o}'), bits)
    fd = os.open(program(f'fchmod-{bits:o}'), os.O_RDONLY)
    call('fchmod', fd, bits)
    call('fchmodat', AT, program(f'fchmodat-{bits:o}'), bits)
    call('fchmodat2', AT, program(f'fchmodat2-{bits:o}'), bits, 0)
    path = program(f'linked-{bits:o}')
    call('chmod', f'/proc/self/fd/{os.open(path, PATH)}', bits)
    call('open', place(f'open-{bits:o}'), CREATE, bits)
    call('openat', AT, place(f'openat-{bits:o}'), CREATE, bits)
    call('openat', AT, place(f'high-{bits:o}'), CREATE | 1 << 32, bits)
    call('creat', place(f'creat-{bits:o}'), bits)
    call('mknod', place(f'mknod-{bits:o}'), stat.S_IFREG | bits, 0)
    call('mknodat', AT, place(f'mknodat-{bits:o}'), bits, 0)
    call('mkdir', place(f'mkdir-{bits:o}'), bits)
    call('mkdirat', AT, place(f'mkdirat-{bits:o}'), bits)
    how = (ctypes.c_uint64 * 3)(CREATE, bits & 0o7777, 0)
    call('openat2', AT, place(f'openat2-{bits:o}'), how, 24)
    fd = call('openat', AT, top, TMPFILE, bits)
    if fd >= 0:
        link(fd, f'tmpfile-{bits:o}')
capability = bytes.fromhex('0100000280000000000000008000000000000000')
for name in ('v2', 'v3'):
    path = program(f'capability-{name}')
    value = capability if name == 'v2' else b'\\x01\\0\\0\\3' + capability[4:] + bytes(4)
    call('setxattr', path, 'security.capability', value, len(value), 0)
for kind in (stat.S_IFCHR, stat.S_IFBLK):
    call('mknod', place(f'device-{kind:o}'), kind | 0o666, os.makedev(8, 0))
    call('mknodat', AT, place(f'deviceat-{kind:o}'), kind | 0o666, os.makedev(1, 1))
with socket.socket(socket.AF_UNIX) as one:
    one.bind(place('socket'))
    call('fchmod', one.fileno(), 0o6777)
    call('chmod', made[-1], 0o6777)
call('mkfifo', place('fifo'), 0o4777)
if len(sys.argv) > 3:
    with open('/bin/true', 'rb') as source:
        os.write(1, source.read())
    call('fchmod', 1, 0o4755)
    call('chmod', '/proc/self/fd/1', 0o4755)
"""
_CALLS = json.dumps(dict(TABLE[platform.machine()]))
_OPEN = Security.SANDBOX.evolve(restrict_suid_sgid=False)


def gains(top: Path) -> list[str]:
    """Return files below a directory that give rights to another user of the host."""
    found = []
    for directory, names, files in os.walk(top):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            seen = os.lstat(path)
            kind = stat.S_IFMT(seen.st_mode)
            if kind in (stat.S_IFCHR, stat.S_IFBLK) and seen.st_rdev:
                found.append(f"{name}: a device")
            if kind == stat.S_IFLNK:
                continue
            if seen.st_mode & (stat.S_ISUID | stat.S_ISGID):
                found.append(f"{name}: {stat.filemode(seen.st_mode)}")
            if "security.capability" in os.listxattr(path):
                found.append(f"{name}: file capabilities")
    return sorted(found)


def plant(container: Container, top: str, user: str = "root") -> None:
    """Try inside to leave a set-id program below a directory, in each way."""
    container.exec([sys.executable, "-c", PLANT, top, _CALLS], user=user, timeout=60, check=True)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return a directory of the host that other users can enter and the guest can write."""
    tmp_path.chmod(0o755)
    top = tmp_path / "shared"
    top.mkdir()
    top.chmod(0o777)
    return top


@pytest.mark.case("U21")
@pytest.mark.parametrize("idmap", [None, False])
@pytest.mark.parametrize("init", [True, False])
def test_nothing_in_a_bind_gives_rights(shared: Path, idmap: bool | None, init: bool) -> None:
    mounts = {"/x": Bind(shared, idmap=idmap)}
    if init:
        with Container(mounts=mounts) as container:
            assert container.isolation.restrict_suid_sgid
            plant(container, "/x")
    else:
        command = [sys.executable, "-c", PLANT, "/x", _CALLS]
        with Container(command=command, mounts=mounts, init=False) as container:
            assert container.wait(60) == 0
    assert len(list(shared.iterdir())) > 20
    assert gains(shared) == []


@pytest.mark.control("U21")
def test_without_the_restriction_a_bind_has_such_programs(shared: Path) -> None:
    with Container(mounts={"/x": shared}, security=_OPEN) as container:
        assert not container.isolation.restrict_suid_sgid
        plant(container, "/x")
    found = {entry.partition(":")[0] for entry in gains(shared)}
    ways = {"chmod", "fchmod", "fchmodat", "linked", "openat", "high", "mknodat", "tmpfile", "openat2"}
    assert {f"{way}-{bits:o}" for way in ways for bits in (0o4755, 0o6777)} <= found


@pytest.mark.control("U21")
@pytest.mark.skipif(os.geteuid() != 0, reason="file capabilities of an unprivileged user hold nowhere else")
def test_fully_privileged_guest_leaves_file_capabilities(shared: Path) -> None:
    with Container(mounts={"/x": shared}, security=Security.DOCKER) as container:
        assert not container.isolation.restrict_suid_sgid
        plant(container, "/x")
    assert any("file capabilities" in one for one in gains(shared))


@pytest.mark.case("U21")
def test_nothing_in_a_volume_gives_rights(shared: Path) -> None:
    with Volume() as volume:
        with Container(volumes={"/v": volume}) as container:
            plant(container, "/v")
        with Container(volumes={"/v": volume}, security=Security.DOCKER, mounts={"/x": shared}) as container:
            found = container.exec("find /v -perm /6000; getcap -r /v 2>/dev/null", shell=True).stdout
    assert found == ""


@pytest.mark.case("U21")
def test_copies_to_the_host_give_no_rights(shared: Path) -> None:
    """Files that a guest without the restriction made in its own root lose their set-id bits as well."""
    with Container(security=_OPEN) as container:
        container.exec(["mkdir", "/tree"], check=True)
        plant(container, "/tree")
        assert container.exec("find /tree -perm /6000", shell=True).stdout
        container.exec("rm -f /tree/device* /tree/fifo /tree/socket", shell=True, check=True)
        container.copy_out("/tree", shared / "tree")
        container.copy_out("/tree/chmod-4755", shared / "file")
    assert len(list((shared / "tree").iterdir())) > 20
    assert gains(shared) == []


MAPPED = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mmap.mmap(fd, 4096)[:4] = b'EVIL'
"""


@pytest.mark.case("U21")
def test_copies_into_a_bind_give_no_rights(shared: Path, tmp_path: Path) -> None:
    """A write through a shared mapping keeps set-id bits, so the guest would choose the program."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, mode in (("user", 0o4755), ("group", 0o2755)):
        (tree / name).write_bytes(b"x" * 4096)
        (tree / name).chmod(mode)
    if os.geteuid() == 0:
        os.setxattr(tree / "user", "security.capability", bytes.fromhex("01000002" + "ffffffff" + "00" * 12))
        (tree / "user").chmod(0o4755)
    with Container(mounts={"/x": shared}) as container:
        container.copy_in(tree, "/x/tree")
        container.copy_in(tree / "user", "/x/file")
        container.path("/x/touched").touch(0o4755)
        for way in ("file", "tree/group"):
            with pytest.raises(PathError, match="set-group-ID bit"):
                container.path(f"/x/{way}").chmod(0o4755)
        container.exec(["ln", "-s", "/x/file", "/root/link"], check=True)
        with pytest.raises(PathError, match="set-group-ID bit"):
            container.path("/root/link").chmod(0o4755)
        assert gains(shared) == []
        container.copy_in(tree, "/root/tree")
        container.path("/root/tree/user").chmod(0o6755)
        assert container.path("/root/tree/user").stat().st_mode & 0o7777 == 0o6755
        assert container.path("/root/tree/group").stat().st_mode & 0o7777 == 0o2755


@pytest.mark.control("U21")
def test_mapped_write_keeps_set_id_bits(shared: Path) -> None:
    program = shared / "program"
    program.write_bytes(b"x" * 4096)
    with Container(mounts={"/x": shared}, security=_OPEN) as container:
        container.path("/x/program").chmod(0o4755)
        container.exec([sys.executable, "-c", MAPPED, "/x/program"], check=True)
    assert program.read_bytes()[:4] == b"EVIL"
    assert gains(shared) != []


@pytest.mark.case("U21")
def test_inherited_stream_gains_no_rights(shared: Path) -> None:
    target = shared / "output"
    command = [sys.executable, "-c", PLANT, "/tmp", _CALLS, "lent"]
    with Container() as container, target.open("wb") as stream:
        process = container.popen(command, stdout=stream)
        assert process.wait(60) == 0
    assert gains(shared) == []


@pytest.mark.case("U21")
def test_everyday_tools_work_or_say_why() -> None:
    script = """
        cd /tmp && mkdir -m 2755 made; ls -ld made
        mkdir -p tree/inner && echo x > tree/inner/file && tar -cf tree.tar --mode=2755 tree
        mkdir out && tar -C out --no-same-permissions -xf tree.tar && cat out/tree/inner/file
        mkdir kept && tar -C kept --same-permissions -xf tree.tar; echo "tar $?"; cat kept/tree/inner/file
        cp -r tree copy && install -m 755 /bin/true tool && ./tool && echo fine
    """
    with Container() as container:
        result = container.exec(script, shell=True, check=True)
    assert "drwxr-xr-x" in result.stdout
    assert result.stdout.splitlines()[1:] == ["x", "tar 2", "x", "fine"]
    assert "tree: Cannot change mode to rwxr-sr-x: Operation not permitted" in result.stderr
