"""A01, A03, A10: kernel memory and per-user counters stay bounded by the container's own limits."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kernel_resources import program
from pycontain import Container, Engine, Security
from pycontain._cgroups import translate
from pycontain._security.profiles import SANDBOX_FILTER
from pycontain._security.seccomp import ALLOW, Filter, Rule

_PAGE = 4096

INSTANCES = """
import ctypes, time
c = ctypes.CDLL(None); n = 0
while n < 20000 and c.inotify_init1(0) >= 0: n += 1
print(n, flush=True); time.sleep(60)
"""
TIMERS = """
import ctypes, time
c = ctypes.CDLL(None); n = 0; t = (ctypes.c_long * 4)()
while n < 200000 and c.timer_create(1, None, t) == 0: n += 1
print(n, flush=True); time.sleep(60)
"""
WATCHES = """
import ctypes, os, time
c = ctypes.CDLL(None); n = 0; i = c.inotify_init1(0)
while n < 5000:
    name = '/tmp/w%d' % n; os.close(os.open(name, os.O_CREAT))
    if c.inotify_add_watch(i, name.encode(), 2) < 0: break
    n += 1
print(n, flush=True); time.sleep(60)
"""
ONE_INSTANCE = "import ctypes; print(ctypes.CDLL(None).inotify_init1(0) >= 0)"
ONE_TIMER = "import ctypes; print(ctypes.CDLL(None).timer_create(1, None, (ctypes.c_long * 4)()) == 0)"


@contextlib.contextmanager
def _taking(container: Container, code: str) -> Iterator[int]:
    """Run a guest that takes objects and keeps them; yields how many it got."""
    guest = container.popen([sys.executable, "-c", code])
    try:
        assert guest.stdout is not None
        yield int(guest.stdout.readline())
    finally:
        guest.kill()
        guest.communicate()


def _asks(container: Container, code: str) -> bool:
    return str(container.exec([sys.executable, "-c", code]).stdout).strip() == "True"


def _host_asks(code: str) -> bool:
    return (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"
    )


def _pages(protocol: str) -> int:
    """Return the pages of socket buffers of this protocol on the whole host."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith(f"{protocol}:"):
            return int(line.split()[-1])
    return 0


@pytest.fixture
def counts_sockets(engine: Engine) -> None:
    """Skip if the memory controller cannot count socket buffers."""
    if (
        "memory" not in engine._session.cgroups.layout.controllers
        and not engine._session.cgroups.layout.counts_sockets
    ):
        pytest.skip("no cgroup here counts socket buffers")


def _buffers(kind: str, protocol: str, children: int) -> int:
    """Return the growth in bytes of the host's socket buffers while a guest of 64 MiB fills its own."""
    before = _pages(protocol)
    with Container(memory="64M", pids=64) as container:
        guest = container.popen([sys.executable, "-c", program(kind, children)])
        most, deadline = 0, time.monotonic() + 8
        while time.monotonic() < deadline and guest.poll() is None:
            most = max(most, _pages(protocol) - before)
            time.sleep(0.1)
        guest.kill()
        guest.communicate()
        assert container.exec(["echo", "on"]).stdout == "on\n"
    return most * _PAGE


@pytest.mark.case("A01", "A10")
@pytest.mark.parametrize(("kind", "protocol", "children"), [("udp", "UDP", 4), ("tcp", "TCP", 1)])
def test_socket_buffers_are_bounded(kind: str, protocol: str, children: int, counts_sockets: None) -> None:
    assert _buffers(kind, protocol, children) < 80 << 20


@pytest.mark.control("A01", "A10")
def test_uncounted_socket_buffers_exceed_the_limit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    if not engine._session.cgroups.layout.counts_sockets:
        pytest.skip("cgroup v2 counts socket buffers by itself")
    monkeypatch.setattr(translate, "_SOCKETS_LEAST", 1 << 40)
    assert _buffers("udp", "UDP", 4) > 80 << 20


@pytest.mark.case("A03")
@pytest.mark.parametrize(("taker", "one"), [(INSTANCES, ONE_INSTANCE), (TIMERS, ONE_TIMER)])
def test_counters_of_the_user_leave_room_for_others(taker: str, one: str) -> None:
    with Container() as container, Container() as sibling, _taking(container, taker) as taken:
        assert taken > 0
        assert _host_asks(one)
        assert _asks(sibling, one)


@pytest.mark.case("A03")
def test_a_rootless_container_has_a_share_of_the_inotify_watches(engine: Engine) -> None:
    if engine._session.features.privileged:
        pytest.skip("root's containers are counted under ids of their own")
    with Container() as container:
        shown = container.exec(["cat", "/proc/sys/user/max_inotify_watches"]).stdout
        most = int(Path("/proc/sys/user/max_inotify_watches").read_text())
        assert int(shown) == most // 8
        with _taking(container, WATCHES) as taken:
            assert taken <= most // 8


@pytest.mark.control("A03")
def test_a_user_namespace_of_the_caller_takes_its_inotify_instances() -> None:
    """The kernel charges a namespace of `unshare -U` to the caller, without a share."""
    guest = subprocess.Popen(
        ["unshare", "-U", sys.executable, "-c", INSTANCES], stdout=subprocess.PIPE, text=True
    )
    try:
        assert guest.stdout is not None
        line = guest.stdout.readline()
        if not line:
            pytest.skip("no user namespaces for this user")
        assert not _host_asks(ONE_INSTANCE)
    finally:
        guest.kill()
        guest.communicate()


@pytest.mark.case("A03")
def test_an_explicit_rlimit_widens_the_default() -> None:
    with Container(rlimits={"sigpending": 3000}) as container, _taking(container, TIMERS) as taken:
        assert taken == 3000
    with Container() as container, _taking(container, TIMERS) as taken:
        assert taken == 1024


FILTER = """
import ctypes, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0xffff))
try:
    s.setsockopt(1, 26, struct.pack('HxxxxxxQ', 1, ctypes.addressof(code)))
    print('attached')
except OSError as error:
    print(error.errno)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
"""


@pytest.mark.case("A10")
def test_filters_of_sockets_are_refused() -> None:
    with Container() as container:
        done = container.exec([sys.executable, "-c", FILTER])
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.control("A10")
def test_without_the_refusal_a_socket_takes_a_filter() -> None:
    rules = [rule for rule in SANDBOX_FILTER.rules if "setsockopt" not in rule.names]
    wide = Filter(rules=(Rule(names="setsockopt", action=ALLOW), *rules))
    with Container(security=Security.SANDBOX.evolve(seccomp=wide)) as container:
        assert container.exec([sys.executable, "-c", FILTER]).stdout == "attached\n"
