"""Isolation: a guest sees and reaches only the objects of the host that its options name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pycontain import Bind, Container, Engine, Image, StartError, Tmpfs

SCAN = r"""
import os, sys
needle = bytes.fromhex(sys.argv[1])
found = []
for root, _, names in os.walk('/proc'):
    for name in names:
        path = os.path.join(root, name)
        skipped = '/proc/kcore /kmsg /trace /pagemap /mem /task/ /kpage /proc/self/ /thread-self/'
        if any(part in path for part in skipped.split()):
            continue
        if '/proc/%d/' % os.getpid() in path:
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            data = os.read(fd, 1 << 20)
        except OSError:
            continue
        finally:
            os.close(fd)
        if needle in data:
            found.append(path)
print(found)
print(sorted(os.listdir('/proc/self/fd')))
"""


def test_eight_namespaces_of_its_own(container: Container) -> None:
    kinds = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time")
    listing = container.exec(
        "for n in mnt pid net ipc uts user cgroup time; do readlink /proc/self/ns/$n; done", shell=True
    )
    own = [
        os.readlink(f"/proc/self/ns/{kind}") if os.path.exists(f"/proc/self/ns/{kind}") else ""
        for kind in kinds
    ]
    theirs = listing.stdout.split()
    if "time namespace" in container.isolation.missing:
        own.remove("")
    if "cgroup namespace" in container.isolation.missing:
        theirs.remove(own.pop(kinds.index("cgroup")))
    assert len(theirs) == len(own)
    assert not set(theirs) & set(own)


def test_no_capability_and_locked_bits(container: Container) -> None:
    status = container.exec(["cat", "/proc/self/status"]).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


@pytest.mark.security
def test_secrets_of_the_caller_are_not_found(container: Container, tmp_path: Path) -> None:
    """E04, E26, E28: heap, environment and open files of the caller are not visible."""
    secret = os.urandom(16)
    held = [bytes(secret) for _ in range(64)]
    os.environ["PYC_HEX"] = secret.hex()
    (tmp_path / "secret").write_bytes(secret)
    with open(tmp_path / "secret", "rb") as file:
        os.set_inheritable(file.fileno(), True)
        with Container() as fresh:
            for one in (container, fresh):
                shown = one.exec(["python3", "-c", SCAN, secret.hex()], timeout=60)
                lines = shown.stdout.splitlines()
                assert lines[0] == "[]", shown
                assert eval(lines[1]) == ["0", "1", "2", "3"]  # 3 is the listing itself
    assert held


@pytest.mark.security
def test_agent_is_out_of_reach(container: Container) -> None:
    for path in ("exe", "root/", "cwd/", "mem", "maps", "environ", "fd/0", "fd/3", "fd/4"):
        shown = container.exec(
            ["sh", "-c", f"cat /proc/1/{path} || ls /proc/1/{path}/ || readlink /proc/1/{path}"]
        )
        assert shown.returncode != 0, path
        assert not shown.stdout


def test_host_files_are_out_of_reach(container: Container) -> None:
    for path in (
        "/etc/shadow",
        "/var/log",
        "/root/.ssh",
        "/home/root",
        "/run/systemd",
        "/sys/kernel",
        "/boot",
    ):
        assert container.exec(["test", "-e", path]).returncode == 1, path


def test_hostname_is_its_own() -> None:
    with Container(hostname="sandbox") as container:
        assert container.exec(["hostname"]).stdout == "sandbox\n"
        assert container.exec(["cat", "/etc/hostname"]).stdout == "sandbox\n"
        assert "127.0.1.1 sandbox" in container.exec(["cat", "/etc/hosts"]).stdout
    assert socket.gethostname() != "sandbox"


def test_network_is_a_loopback_of_its_own(container: Container) -> None:
    code = (
        "import socket\n"
        "print(sorted(name for _, name in socket.if_nameindex()))\n"
        "s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname())\n"
        "try: socket.create_connection(('192.0.2.1', 80), 1)\n"
        "except OSError as e: print(e.errno)\n"
    )
    lines = container.exec(["python3", "-c", code]).stdout.splitlines()
    assert "lo" in lines[0]
    assert lines[1] == "101"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        assert "refused" in container.exec(["python3", "-c", probe]).stderr


def test_processes_are_its_own(container: Container) -> None:
    pids = container.exec("ls -d /proc/[0-9]*", shell=True).stdout.split()
    assert len(pids) <= 4
    assert container.exec(["sh", "-c", f"kill -0 {os.getpid()}"]).returncode != 0


def test_clock_cannot_be_set(container: Container) -> None:
    assert container.exec(["date", "-s", "2001-01-01"]).returncode != 0


def test_usr_is_read_only_and_the_root_is_private(container: Container) -> None:
    assert container.exec("echo x > /usr/x", shell=True).returncode != 0
    assert container.exec("echo x > /x && cat /x", shell=True).stdout == "x\n"
    with Container() as other:
        assert other.exec(["test", "-e", "/x"]).returncode == 1


def test_read_only_root() -> None:
    with Container(read_only=True) as container:
        assert container.exec("echo x > /x", shell=True).returncode != 0
        assert container.exec("echo x > /tmp/x && echo x > /workspace/x", shell=True).returncode == 0


def test_masks_hold(container: Container) -> None:
    masks = ["/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/kcore"]
    for path in masks:
        assert container.exec(["cat", path]).stdout == "", path
    assert container.exec("echo x > /proc/sys/kernel/hostname", shell=True).returncode != 0


def test_binds(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from the host")
    tmp_path.chmod(0o777)
    mounts = {"/ro": Bind(tmp_path, read_only=True), "/file": Bind(tmp_path / "given", read_only=True)}
    with Container(mounts=mounts, tmpfs={"/scratch": Tmpfs("1M")}) as container:
        assert container.exec(["cat", "/ro/given"]).stdout == "from the host"
        assert container.exec(["cat", "/file"]).stdout == "from the host"
        assert "Read-only" in container.exec("echo x > /ro/x", shell=True).stderr
        assert "No space" in container.exec("head -c 2M /dev/zero > /scratch/x", shell=True).stderr


def test_idmapped_bind(tmp_path: Path, engine: Engine, needs_idmap: None) -> None:
    if not engine._session.features.privileged:
        pytest.skip("idmapped mounts need root")
    with Container(mounts={"/data": Bind(tmp_path, idmap=True)}) as container:
        result = container.exec("echo x > /data/made && stat -c %u /data/made", shell=True)
    assert result.stdout == "0\n"
    assert (tmp_path / "made").stat().st_uid == 0


_PROPAGATED = """
import subprocess, sys
from pycontain import Bind, Container
top = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "pyc-shared", top], check=True)
subprocess.run(["mount", "--make-shared", top], check=True)
mounts = {"/slave": Bind(top, propagation="slave"), "/private": Bind(top)}
with Container(mounts=mounts) as container:
    for name in ("one", "two"):
        subprocess.run(["mkdir", f"{top}/{name}"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "pyc-later", f"{top}/one"], check=True)
    subprocess.run(["touch", f"{top}/one/there"], check=True)
    print(container.exec("ls /slave/one; echo -; ls /private/one", shell=True).stdout.split())
"""


def test_later_host_mounts_propagate_only_on_request(tmp_path: Path, engine: Engine) -> None:
    if not engine._session.features.privileged:
        pytest.skip("mounting needs root")
    command = ["unshare", "-m", sys.executable, "-c", _PROPAGATED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['there', '-']", done.stderr


def _rootfs(top: Path) -> Path:
    """Return a minimal root: busybox and the usual directories."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("busybox is not installed")
    (top / "bin").mkdir(parents=True)
    (top / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (top / "bin" / "busybox").chmod(0o755)
    for name in ("sh", "cat", "ls", "true", "echo", "id"):
        (top / "bin" / name).symlink_to("busybox")
    return top


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    for parent in tmp_path.parents:
        if parent != Path("/tmp") and os.access(parent, os.W_OK) and parent.stat().st_uid == os.getuid():
            parent.chmod(0o755) if str(parent).startswith("/tmp/") else None
    return _rootfs(tmp_path / "rootfs")


def test_directory_as_image(rootfs: Path) -> None:
    with Container(Image.from_rootfs(rootfs)) as container:
        assert container.exec(["echo", "hi"]).stdout == "hi\n"
        container.exec("echo x > /new", shell=True, check=True)
        assert container.exec(["ls", "/dev/pts"]).returncode == 0
    assert not (rootfs / "new").exists()


def test_archive_as_image(rootfs: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "image.tar.gz", "w:gz") as archive:
        archive.add(rootfs, ".")
    image = Image.from_rootfs(tmp_path / "image.tar.gz")
    assert Image.from_rootfs(tmp_path / "image.tar.gz").directories == image.directories
    with Container(image) as container:
        assert container.exec(["echo", "hi"]).stdout == "hi\n"


@pytest.mark.security
@pytest.mark.parametrize("name", ["proc", "dev", "tmp"])
@pytest.mark.parametrize("target", ["/usr", "/nowhere", "../../outside", "{host}"])
def test_engine_directories_as_links(rootfs: Path, tmp_path: Path, name: str, target: str) -> None:
    """E05, E06: a link in place of a mount point is refused, and nothing outside is touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / name).symlink_to(target.format(host=outside))
    with pytest.raises(StartError) as refused:
        Container(Image.from_rootfs(rootfs)).start()
    assert refused.value.path == f"/{name}"
    assert list(outside.iterdir()) == []


@pytest.mark.security
def test_written_files_as_links(rootfs: Path, tmp_path: Path) -> None:
    """E08: links of the image in place of files that the engine writes."""
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    (rootfs / "etc").mkdir()
    for name in ("hosts", "hostname", "resolv.conf"):
        (rootfs / "etc" / name).symlink_to(canary)
    with Container(Image.from_rootfs(rootfs)) as container:
        assert "localhost" in container.exec(["cat", "/etc/hosts"]).stdout
    assert canary.read_text() == "untouched"


@pytest.mark.security
def test_bind_below_a_link(rootfs: Path, tmp_path: Path) -> None:
    """E08: a bind whose target path has a link of the image ends inside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "data").symlink_to(outside)
    (tmp_path / "given").mkdir()
    try:
        with Container(Image.from_rootfs(rootfs), mounts={"/data/x": tmp_path / "given"}) as container:
            container.exec(["ls", "/data"])
    except StartError:
        pass
    assert list(outside.iterdir()) == []


def test_many_layers(rootfs: Path, tmp_path: Path) -> None:
    layers = [str(rootfs)]
    for number in range(60):
        layer = tmp_path / f"layer{number}"
        layer.mkdir()
        (layer / f"file{number}").write_text(str(number))
        layers.insert(0, str(layer))
    with Container(Image(name="many", directories=tuple(layers))) as container:
        assert container.exec(["cat", "/file0", "/file59"]).stdout == "059"


def test_isolation_reports_active_controls(container: Container) -> None:
    report = container.isolation
    assert report.seccomp
    assert report.no_new_privs
    assert report.capabilities == ()
    absent = {"time namespace", "cgroup namespace"}.intersection(report.missing)
    assert len(report.namespaces) + len(absent) == 8
