"""Main example: untrusted Python exceeds the memory limit of its sandbox, which is reported as `oom`."""

from __future__ import annotations

import time

from pycontain import CommandTimeout, Container, Security, UnsupportedError

UNTRUSTED = """
import os, socket
print('I am', os.getuid(), 'and see the processes', [p for p in os.listdir('/proc') if p.isdigit()])
try:
    socket.create_connection(('192.0.2.1', 80), 1)
except OSError as error:
    print('the network:', error)
try:
    open('/etc/shadow')
except OSError as error:
    print('the host:', error)
hoard = []
while True:
    hoard.append(bytearray(16 << 20))
"""


def main() -> None:
    """Run the demonstration and print what happened."""
    try:
        container = Container(memory="64M", pids=32)
    except UnsupportedError as error:
        print(f"this user has no cgroup of its own: {error}")
        print("going on without, as Security.optional allows; RLIMIT_DATA and RLIMIT_NPROC stand in\n")
        relaxed = Security.SANDBOX.evolve(optional={"memory", "pids", "landlock", "time"})
        container = Container(memory="64M", pids=32, security=relaxed)
    with container as c:
        print("start-up phases, in milliseconds:")
        for phase, seconds in c.timings.items():
            print(f"  {phase:8} {seconds * 1e3:7.3f}")
        report = c.isolation
        print(f"isolation: {', '.join(report.namespaces)}; ids: {report.identity}; cgroups: {report.cgroups}")
        if report.missing:
            print(f"missing on this host: {', '.join(report.missing)}")
        result = c.exec(["python3", "-u", "-c", UNTRUSTED], timeout=30)
        print(f"\n{result.stdout}{result.stderr[-200:]}")
        print(
            f"returncode {result.returncode}, reason {result.reason!r}, peak {result.usage.memory_peak} bytes"
        )
        if "memory limit" not in report.missing:
            assert result.reason == "oom", result
        try:
            c.exec("sleep 1000 & sleep 1000", shell=True, timeout=0.2)
        except CommandTimeout as expired:
            print(f"and a command that would not end: {expired}")
        print("still usable:", c.exec(["echo", "yes"]).stdout, end="")
    times = []
    for _ in range(50):
        begun = time.perf_counter()
        with Container() as fresh:
            fresh.exec(["true"])
        times.append(time.perf_counter() - begun)
    print(f"start, run `true`, remove: median {sorted(times)[25] * 1e3:.2f} ms of 50")


if __name__ == "__main__":
    main()
