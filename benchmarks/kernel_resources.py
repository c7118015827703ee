"""Measure the kernel memory that a container takes beyond its memory limit, for each kind of kernel object.

Run as root or as an unprivileged user::

    python -m benchmarks.kernel_resources [--memory 64M] [--json FILE] [KIND ...]

For each kind, a guest with default security takes as many objects as it can within `SECONDS`.  The script
prints how many there were, what the cgroup counted, by how much the host's free memory fell at most, and how
much the host got back when the guest was killed.  Memory beyond the counted one was counted by no limit.
Other work adds noise.  `--unwatched` switches the engine's own limit of such memory off.
"""

from __future__ import annotations

import argparse
import json
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pycontain import Container, Security
from pycontain._runtime import kernel_memory

SECONDS = 4
LINE = "{kind:18} {objects:>8} {counted:>5} MiB counted {peak:>6} MiB peak {freed:>6} MiB freed  {stopped}"

PRELUDE = """
import ctypes, fcntl, os, select, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
deadline = time.monotonic() + {seconds}
def check(value):
    if value < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return value
keep = []
"""

KINDS = {
    "udp": """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); s.setblocking(False)
s.setsockopt(1, socket.SO_RCVBUF, 1 << 30); keep.append(s)
for _ in range(16): s.sendto(b'x' * 60000, s.getsockname())
""",
    "tcp": """
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(5); a = socket.socket(); a.connect(l.getsockname())
b, _ = l.accept(); a.setblocking(False); keep.extend((l, a, b))
try:
    while True: a.send(b'x' * 65536)
except BlockingIOError: pass
""",
    "unix": """
a, b = socket.socketpair(); a.setblocking(False); keep.extend((a, b))
try:
    while True: a.send(b'x' * 65536)
except BlockingIOError: pass
""",
    "unix-dgram": """
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.setblocking(False); keep.extend((a, b))
try:
    while True: a.send(b'x')
except BlockingIOError: pass
""",
    "netlink": """
s = socket.socket(16, 3, 0); s.bind((0, 0)); s.setblocking(False); keep.append(s)
for _ in range(200): s.send(struct.pack('IHHIIBxHiII', 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0))
""",
    "accept-queue": """
if len(keep) % 3000 == 0:
    l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(4096)
a = socket.socket(); a.connect(l.getsockname()); a.close(); keep.append(l)
""",
    "accept-queue-data": """
if len(keep) % 3000 == 0:
    l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(4096)
a = socket.socket(); a.connect(l.getsockname()); a.setblocking(False); a.send(b'x' * 60000); a.close()
keep.append(l)
""",
    "error-queue-udp": """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); s.setblocking(False)
s.setsockopt(1, socket.SO_RCVBUF, 1 << 30); s.setsockopt(0, 11, 1); s.setsockopt(1, 37, 2 | 16)
keep.append(s); t = globals().setdefault('t', s)
for _ in range(8): s.sendto(b'x' * 60000, t.getsockname())
""",
    "error-queue-tcp": """
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(5); a = socket.socket(); a.connect(l.getsockname())
b, _ = l.accept(); a.setsockopt(1, socket.SO_RCVBUF, 1 << 30); a.setsockopt(1, 37, 2 | 16); l.close()
keep.extend((a, b))
for _ in range(8): a.send(b'x' * 60000); b.recv(1 << 20)
""",
    "icmp-errors": """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 9)); s.setblocking(False)
s.setsockopt(1, socket.SO_RCVBUF, 1 << 30); s.setsockopt(0, 11, 1); keep.append(s)
for _ in range(600):
    try: s.send(b'x' * 500)
    except OSError: pass
""",
    "ping": """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1); s.setsockopt(1, socket.SO_RCVBUF, 1 << 30)
keep.append(s)
for _ in range(20): s.sendto(b'\\x08' + bytes(40000), ('127.0.0.1', 0))
""",
    "record-locks": """
f = os.open('/dev/shm/l%d_%d' % (os.getpid(), len(keep)), os.O_RDWR | os.O_CREAT); keep.append(f)
for i in range(450): fcntl.fcntl(f, fcntl.F_SETLK, struct.pack('hhqqi4x', 0, 0, (4000 - i) * 2, 1, 0))
""",
    "ofd-locks": """
f = os.open('/dev/shm/l%d_%d' % (os.getpid(), len(keep)), os.O_RDWR | os.O_CREAT); keep.append(f)
for i in range(450): fcntl.fcntl(f, 37, struct.pack('hhqqi4x', 0, 0, (4000 - i) * 2, 1, 0))
""",
    "ofd-locks-mapped": """
import mmap
f = os.open('/dev/shm/l%d_%d' % (os.getpid(), len(keep)), os.O_RDWR | os.O_CREAT); os.ftruncate(f, 4096)
m = libc.mmap; m.restype = ctypes.c_void_p; m(None, ctypes.c_size_t(4096), 1, 1, f, ctypes.c_long(0))
for i in range(450): fcntl.fcntl(f, 37, struct.pack('hhqqi4x', 0, 0, (4000 - i) * 2, 1, 0))
os.close(f); keep.append(0)
""",
    "flock": """
f = os.open('/tmp/f', os.O_RDWR | os.O_CREAT); keep.append(f); fcntl.flock(f, fcntl.LOCK_SH)
""",
    "socket-filters": """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); keep.append(s)
code = struct.pack('HBBI', 0, 0, 0, 1) * 3500 + struct.pack('HBBI', 6, 0, 0, 1)
buf = ctypes.create_string_buffer(code)
s.setsockopt(1, 26, struct.pack('HxxxxxxQ', 3501, ctypes.addressof(buf)))
""",
    "seccomp-filters": """
class P(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('p', ctypes.c_void_p)]
code = struct.pack('HBBI', 0, 0, 0, 1) * 4000 + struct.pack('HBBI', 6, 0, 0, 0x7fff0000)
buf = ctypes.create_string_buffer(code); p = P(4001, ctypes.addressof(buf))
check(libc.prctl(22, 2, ctypes.byref(p))); keep.append(0)
""",
    "multicast4": """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); keep.append(s)
for i in range(16):
    group = bytes([239, os.getpid() % 250, len(keep) >> 4 & 255, (len(keep) & 15) * 16 + i])
    s.setsockopt(0, 35, group + socket.inet_aton('127.0.0.1'))
""",
    "multicast6": """
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); keep.append(s)
for i in range(200):
    group = socket.inet_pton(10, 'ff05::%x:%x:%x' % (os.getpid(), len(keep), i))
    s.setsockopt(41, 20, group + struct.pack('I', 1))
""",
    "sockets": "keep.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))",
    "pipes": """
r, w = os.pipe(); keep.extend((r, w)); os.set_blocking(w, False)
try:
    while True: os.write(w, b'x' * 4096)
except BlockingIOError: pass
""",
    "pipes-large": """
r, w = os.pipe(); keep.extend((r, w)); fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 1 << 20); os.set_blocking(w, False)
try:
    while True: os.write(w, b'x' * 65536)
except BlockingIOError: pass
""",
    "huge-pages": """
import mmap
keep.append(mmap.mmap(-1, 1 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)); keep[-1][0] = 1
""",
    "epoll-watches": """
e = select.epoll(); keep.append(e)
for fd in (keep2 := globals().setdefault('keep2', [os.eventfd(0) for _ in range(300)])): e.register(fd, 1)
""",
    "eventfd": "keep.append(os.eventfd(0))",
    "timerfd": "keep.append(check(libc.timerfd_create(1, 0)))",
    "signalfd": "keep.append(check(libc.signalfd(-1, ctypes.create_string_buffer(128), 0)))",
    "posix-timers": "check(libc.timer_create(1, None, (ctypes.c_long * 4)())); keep.append(0)",
    "queued-signals": """
signal.pthread_sigmask(signal.SIG_BLOCK, [40])
check(libc.sigqueue(os.getpid(), 40, ctypes.c_void_p(0))); keep.append(0)
""",
    "inotify-instances": "keep.append(check(libc.inotify_init1(0)))",
    "inotify-watches": """
i = globals().setdefault('ino', check(libc.inotify_init1(0)))
name = '/tmp/w%d_%d' % (os.getpid(), len(keep)); os.close(os.open(name, os.O_CREAT))
check(libc.inotify_add_watch(i, name.encode(), 2)); keep.append(0)
""",
    "pty": "keep.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))",
    "message-queues": """
libc.mq_open.restype = ctypes.c_int
keep.append(check(libc.mq_open(b'/q%d_%d' % (os.getpid(), len(keep)), 0o102, 0o600, None)))
""",
    "sysv-messages": """
q = check(libc.msgget(0, 0o1600)); keep.append(q)
while libc.msgsnd(q, ctypes.create_string_buffer(struct.pack('l', 1) + b'x' * 1000), 1000, 0o4000) == 0: pass
""",
    "sysv-semaphores": "keep.append(check(libc.semget(0, 32000, 0o1600)))",
    "sysv-shm": "keep.append(check(libc.shmget(0, 4096, 0o1600)))",
    "fds-in-flight": """
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.setblocking(False)
f = os.open('/dev/null', 0)
try:
    while True: socket.send_fds(a, [b'x'], [f] * 100)
except BlockingIOError: pass
pair = globals().setdefault('pair', socket.socketpair())
socket.send_fds(pair[0], [b'x'], [a.fileno(), b.fileno()]); keep.append(0)
""",
    "leases": """
f = os.open('/tmp/s%d_%d' % (os.getpid(), len(keep)), os.O_RDWR | os.O_CREAT); keep.append(f)
fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
""",
    "mappings": """
import mmap
keep.append(mmap.mmap(-1, 4096, prot=1 if len(keep) & 1 else 3))
""",
    "page-tables": """
import mmap
m = globals().get('m') or mmap.mmap(-1, 1 << 38, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, 1)
for _ in range(100): m[len(keep) << 21]; keep.append(0)
""",
    "directory-entries": """
try: os.stat('/tmp/none%d_%d' % (os.getpid(), len(keep)))
except FileNotFoundError: pass
keep.append(0)
""",
    "tcp-orphans": """
l = globals().get('l')
if l is None: l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(4000)
a = socket.socket(); a.connect(l.getsockname()); b, _ = l.accept()
b.setsockopt(1, 8, 4096); a.setblocking(False)
try:
    while True: a.send(b'x' * 65536)
except BlockingIOError: pass
a.close(); keep.append(b)
""",
    "time-wait": """
l = globals().get('l')
if l is None: l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(4000)
a = socket.socket(); a.connect(l.getsockname()); b, _ = l.accept(); a.close(); b.close(); keep.append(0)
""",
}
"""Kind of object to the code that takes some more of it, with `keep` to count them."""

LOOP = """
r, w = os.pipe()
for child in range({children}):
    if os.fork() == 0:
        why = 'time'
        try:
            while time.monotonic() < deadline and len(keep) < 200000:
{body}
        except (OSError, ValueError, MemoryError) as error:
            why = str(error)[:40]
        os.write(w, ('%d|%s;' % (len(keep), why)).encode())
        time.sleep(60)
        os._exit(0)
got = b''
while got.count(b';') < {children}:
    got += os.read(r, 4096)
print(got.decode(), flush=True)
time.sleep(60)
"""


def available() -> int:
    """Return the MiB that the host has left."""
    text = Path("/proc/meminfo").read_text()
    return int(text.split("MemAvailable:")[1].split()[0]) >> 10


def program(kind: str, children: int, seconds: float = SECONDS) -> str:
    """Return the source of a guest that takes objects of this kind in `children` processes."""
    body = "".join(f"                {line}\n" for line in KINDS[kind].strip().splitlines())
    return PRELUDE.format(seconds=seconds) + LOOP.format(children=children, body=body)


def measure(kind: str, memory: str, children: int, security: Security) -> dict[str, object]:
    """Return what one guest took, counted and gave back."""
    with Container(memory=memory, pids=64, security=security) as container:
        least = before = available()
        guest = container.popen([sys.executable, "-c", program(kind, children)], stdout=subprocess.PIPE)
        assert guest.stdout is not None
        while not select.select([guest.stdout], [], [], 0.02)[0]:
            least = min(least, available())
        peak = before - min(least, available())
        said = guest.stdout.readline().strip()
        if not said:
            guest.wait()
        counted = (container.stats().memory or 0) >> 20
        before = available()
        guest.kill()
        guest.communicate()
        time.sleep(0.5)
        freed = available() - before
    taken = [part.split("|") for part in said.split(";") if part]
    return {
        "kind": kind,
        "objects": sum(int(number) for number, _ in taken),
        "stopped": taken[0][1] if taken else guest.reason,
        "counted": counted,
        "peak": peak,
        "freed": freed,
    }


def main() -> None:
    """Measure the kinds named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("--memory", default="64M")
    parser.add_argument("--children", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--unwatched", action="store_true", help="do not stop the guest for uncounted memory")
    parser.add_argument("--docker", action="store_true", help="with Security.DOCKER")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.unwatched:
        kernel_memory._LEAST = 1 << 50
    security = Security.DOCKER if options.docker else Security.SANDBOX
    rows = []
    for kind in options.kinds or KINDS:
        runs = [measure(kind, options.memory, options.children, security) for _ in range(options.rounds)]
        row = {**runs[0], "freed": statistics.median(int(str(run["freed"])) for run in runs)}
        rows.append(row)
        print(LINE.format(**row))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
