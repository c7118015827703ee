"""Route outside for a rootless engine: pasta (passt) or slirp4netns forwards packets of its namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from pycontain._networks.wire import links
from pycontain.errors import UnsupportedError

if TYPE_CHECKING:
    from pycontain._networks.netns_host import NetnsHost

_TUN = "/dev/net/tun"
_LINK = "outside0"
"""Without the prefix of our interfaces, so that the firewall treats it as the outside."""
_PATIENCE, _PAUSE = 5.0, 0.01
"""Seconds until a default route must exist, and between two polls."""
_KEEPER = """
exec 3<&0 </dev/null
( "$@" 3<&- & child=$!
  read -r _ <&3
  kill "$child"; wait "$child" ) &
"""
"""Shell script that kills the program when its stdin reaches the end of file.

The engine holds the other end, so the program ends with it, also if the engine is killed.
"""


def _pasta(program: str, pid: int) -> list[str]:
    """Return the command of pasta, without access to the host's loopback and without port forwarding."""
    return [
        *(program, "--foreground", "--quiet", "--config-net", "--no-map-gw", "--ns-ifname", _LINK),
        *("--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"),
        *("--userns", f"/proc/{pid}/ns/user", "--netns", f"/proc/{pid}/ns/net"),
    ]


def _slirp(program: str, pid: int) -> list[str]:
    return [
        *(program, "--configure", "--mtu=65520", "--disable-host-loopback", "--disable-dns"),
        *(f"--userns-path=/proc/{pid}/ns/user", "--netns-type=path", f"/proc/{pid}/ns/net", _LINK),
    ]


_PROGRAMS = (("pasta", _pasta), ("slirp4netns", _slirp))


def problems() -> str:
    """Return why a rootless engine can have no route outside on this host, or an empty string."""
    if not any(shutil.which(name) for name, _ in _PROGRAMS):
        return "neither pasta nor slirp4netns is installed"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        there = os.path.exists(_TUN)
        return f"{_TUN} cannot be opened by this user" if there else f"{_TUN} does not exist"
    return ""


def remedy(problem: str) -> str:
    """Return a hint for a problem."""
    if problem.startswith(_TUN):
        return (
            f"let this user open {_TUN} (sudo chmod 666 {_TUN})"
            if os.path.exists(_TUN)
            else ("load the tun module (sudo modprobe tun)")
        )
    if "installed" in problem:
        return "install passt or slirp4netns"
    return "run pasta or slirp4netns by hand to see its error"


class RootlessUplink:
    """Uplink of one network namespace, opened on first use."""

    def __init__(self, netns: NetnsHost, pid: int) -> None:
        self._netns = netns
        self._pid = pid
        self._lifeline = -1
        self.program = ""
        self._refusal: tuple[str, str] | None = None

    def open(self) -> None:
        """Start the program and wait for its default route.  Idempotent.

        Raises:
            UnsupportedError: No program works on this host.
        """
        if self._lifeline >= 0:
            return
        if self._refusal is not None:
            raise UnsupportedError(*self._refusal)
        problem = problems()
        for name, command in () if problem else _PROGRAMS:
            program = shutil.which(name)
            if program is None:
                continue
            self._start(command(program, self._pid))
            if self._wait():
                self.program = name
                return
            self.close()
            problem = f"{name} set no default route"
        self._refusal = (
            f"networks with a route outside in a rootless engine ({problem})",
            f"{remedy(problem)}, or use Network(internal=True) without ports, or network='host'",
        )
        raise UnsupportedError(*self._refusal)

    def _start(self, command: list[str]) -> None:
        reading, self._lifeline = os.pipe2(os.O_CLOEXEC)
        try:
            subprocess.run(
                ["/bin/sh", "-c", _KEEPER, "sh", *command],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            raise UnsupportedError(
                f"networks with a route outside in a rootless engine ({error})",
                hint="use Network(internal=True)",
            ) from error
        finally:
            os.close(reading)

    def _wait(self) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            found = links.seen_routes(self._netns.route.ask(links.routes(2)))
            if any(route.length == 0 and route.out for route in found):
                return True
            time.sleep(_PAUSE)
        return False

    def close(self) -> None:
        """End the program.  Idempotent."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
