"""Name service at 127.0.0.11:53 inside containers.

One thread of the caller's process serves all containers. Its sockets are opened in the containers' network
namespaces; queries to other nameservers are sent from the caller's namespace.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from pycontain._networks.dns.loop import Loop
    from pycontain._networks.dns.upstream import OpenSocket
    from pycontain._networks.dns.zone import Client

_MOST_ERRORS = 64


@define(eq=False)
class _Wake:
    """Eventfd that wakes the thread."""

    fd: int = field(factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @property
    def payer(self) -> None:
        """Return None, for no client is charged."""

    def put(self) -> None:
        os.eventfd_write(self.fd, 1)

    def ready(self, mask: int) -> None:
        """Reset the eventfd."""
        os.eventfd_read(self.fd)

    def fail(self) -> None:
        """Ignore an error, for the eventfd is still usable."""


class NameService:
    """Server for the queries of containers, each answered by its `Client`.

    Args:
        open_socket: Opens the sockets for queries to nameservers.
        resolv_conf: The file with the host's nameservers.

    Attributes:
        errors: Recent internal errors, which no caller could receive.
    """

    def __init__(
        self, open_socket: OpenSocket = socket.socket, resolv_conf: str = "/etc/resolv.conf"
    ) -> None:
        self._open_socket, self._resolv_conf = open_socket, resolv_conf
        self._lock = threading.RLock()
        self._served: dict[Client, tuple[socket.socket, socket.socket]] = {}
        self._loop: Loop | None = None
        self._wake: _Wake | None = None
        self._thread: threading.Thread | None = None
        self._gone = self._closed = False
        self.errors: deque[str] = deque(maxlen=_MOST_ERRORS)

    def serve(self, client: Client, udp_fd: int, tcp_fd: int) -> None:
        """Start to serve a client; returns at once.

        Args:
            client: Names and policy of the container.
            udp_fd: A bound UDP socket, owned by the service unless this raises.
            tcp_fd: A listening TCP socket, likewise.

        Raises:
            ValueError: The client is already served.
            RuntimeError: The service is closed, or its thread ended or could not start.
            OSError: An fd is not a socket.
        """
        with self._lock:
            if client in self._served:
                raise ValueError("client is already served")
            if self._closed or self._gone:
                raise RuntimeError(f"the name service has ended: {', '.join(self.errors) or 'closed'}")
            if self._thread is None:
                self._begin()
            udp, tcp = _sockets(udp_fd, tcp_fd)
            try:
                self._served[client] = udp, tcp
                # Registered here, since to wake the thread would take longer.
                if self._loop is not None:
                    self._loop.admit(client, udp, tcp)
            except BaseException:
                self._served.pop(client, None)
                udp.detach()
                tcp.detach()
                raise

    def drop(self, client: Client) -> None:
        """Stop serving a client; its sockets are closed when this returns.  No-op if it is not served."""
        with self._lock:
            sockets = self._served.get(client)
            if sockets is None:
                return
            if self._loop is not None:
                self._loop.dismiss(client)
            for one in sockets:
                one.close()
            del self._served[client]  # last, so that a call after an interrupt finds it

    def close(self) -> None:
        """Stop serving all clients and end the thread.  Idempotent."""
        with self._lock:
            self._closed = True
            wake, thread = self._wake, self._thread
            if wake is None or thread is None:
                return
            wake.put()
        if thread is not threading.current_thread():
            thread.join()
        with self._lock:
            if self._wake is not None:
                os.close(self._wake.fd)
                self._wake = None
            self._close_sockets()

    def forget(self) -> None:
        """Close the fds in a forked child, which has no thread of the service."""
        self._lock = threading.RLock()  # the holder of the old one does not exist in the child
        self._closed = True
        wake, self._wake, self._thread = self._wake, None, None
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.forget()
        if wake is not None:
            os.close(wake.fd)
        self._close_sockets()

    def _close_sockets(self) -> None:
        for pair in self._served.values():
            for one in pair:
                one.close()
        self._served.clear()

    def _begin(self) -> None:
        wake = _Wake()
        # A daemon: the interpreter joins other threads before the atexit callback that calls `close`.
        thread = threading.Thread(target=self._run, args=(wake,), name="pycontain-names", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            os.close(wake.fd)
            raise
        self._wake, self._thread = wake, thread

    def _run(self, wake: _Wake) -> None:
        try:
            # Imported in the thread, so that the start of the first container does not wait for it.
            from pycontain._networks.dns.loop import Loop

            with self._lock:
                loop = self._loop = Loop(self._open_socket, self._resolv_conf, self.errors)
                loop.selector.register(wake.fd, selectors.EVENT_READ, wake)
                for client, sockets in self._served.items():
                    loop.admit(client, *sockets)
            seconds = None
            while not self._closed:
                ready = loop.selector.select(seconds)
                with self._lock:
                    seconds = loop.turn(ready)
        except Exception as error:  # noqa: BLE001  the next `serve` raises it
            self.errors.append(f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._gone = True
                if self._loop is not None:
                    self._loop.close()


def _sockets(udp_fd: int, tcp_fd: int) -> tuple[socket.socket, socket.socket]:
    """Return non-blocking sockets of the fds; on an error both fds stay open."""
    udp = socket.socket(fileno=udp_fd)
    try:
        tcp = socket.socket(fileno=tcp_fd)
    except OSError:
        udp.detach()
        raise
    for one in (udp, tcp):
        one.setblocking(False)
    return udp, tcp
