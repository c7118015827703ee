"""A host outside this machine: a network namespace that is connected to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator


class World:
    """A network namespace beside the host's: outside."""

    def __init__(self) -> None:
        net = f"198.18.{os.getpid() % 256}"
        self.host, self.address = f"{net}.1", f"{net}.2"
        self._keeper = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE
        )
        assert self._keeper.stdout is not None
        self._keeper.stdout.readline()
        self.pid = self._keeper.pid
        self.enter = ["nsenter", "-t", str(self.pid), "-n"]
        self.link = f"pycw{os.getpid()}"
        for command in (
            f"ip link add {self.link} type veth peer name eth0 netns {self.pid}",
            f"ip addr add {self.host}/24 dev {self.link}",
            f"ip link set {self.link} up",
        ):
            subprocess.run(command.split(), check=True)
        for command in ("link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"):
            assert self.run("ip", *command.split()).returncode == 0

    def close(self) -> None:
        """Delete the link and the namespace."""
        subprocess.run(["ip", "link", "del", self.link], check=True)
        self._keeper.kill()
        self._keeper.communicate()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        return subprocess.run([*self.enter, *command], capture_output=True, text=True)

    def connect(self, address: str, port: int) -> str:
        """Connect from there to an echo and return its answer."""
        code = (
            "import socket,sys; s=socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2);"
            "s.send(b'hello'); print(s.recv(99).decode())"
        )
        done = self.run("python3", "-c", code, address, str(port))
        return done.stdout.split(" ")[0] if done.returncode == 0 else done.stderr.strip().split("\n")[-1]

    @contextlib.contextmanager
    def known_as(self, address: str) -> Iterator[None]:
        """Give it one more address for a while."""
        assert self.run("ip", "addr", "add", f"{address}/32", "dev", "lo").returncode == 0
        subprocess.run(["ip", "route", "add", address, "via", self.address], check=True)
        try:
            yield
        finally:
            subprocess.run(["ip", "route", "del", address, "via", self.address], check=True)
            assert self.run("ip", "addr", "del", f"{address}/32", "dev", "lo").returncode == 0

    @contextlib.contextmanager
    def serve(self) -> Iterator[None]:
        """Provide an echo there."""
        code = (
            "import socket, threading; s = socket.create_server(('', 7000)); print(flush=True)\n"
            "def answer(c, a): c.sendall(a[0].encode() + b' ' + c.recv(99)); c.close()\n"
            "while True: threading.Thread(target=answer, args=s.accept(), daemon=True).start()"
        )
        command = [*self.enter, "python3", "-c", code]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            server.stdout.readline()
            yield
        finally:
            server.kill()
            server.communicate()
