"""The name service: what answers at 127.0.0.11:53 inside containers.

One thread of the caller's process answers for all of them.  The sockets belong to the containers' network
namespaces and come as fds; the world is asked from the caller's.
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
    from pycontain._networks.serving import Loop
    from pycontain._networks.upstream import OpenSocket
    from pycontain._networks.zone import Client

_MOST_ERRORS = 64


@define(eq=False)
class _Wake:
    """An eventfd that ends the thread's waiting; what there is to do then it sees by itself."""

    fd: int = field(factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @property
    def payer(self) -> None:
        """None: it is the service's own."""

    def put(self) -> None:
        os.eventfd_write(self.fd, 1)

    def ready(self, mask: int) -> None:
        """Awake."""
        os.eventfd_read(self.fd)

    def fail(self) -> None:
        """The next one is another."""


class NameService:
    """Answers containers, each by what its `Client` says.

    open_socket: makes the sockets that ask nameservers.  resolv_conf: where the host's nameservers are named.
    errors: what went wrong lately that nobody could be told.
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
        """Answer what comes to a bound UDP and a listening TCP socket; returns at once.

        The fds are taken over, unless this raises: ValueError for a client that is served, RuntimeError after
        `close` or where the thread ended or does not start, OSError for what is no socket.
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
                # By the thread it would take its waking up.
                if self._loop is not None:
                    self._loop.admit(client, udp, tcp)
            except BaseException:
                self._served.pop(client, None)
                udp.detach()
                tcp.detach()
                raise

    def drop(self, client: Client) -> None:
        """Answer it no longer; its sockets are closed when this returns.

        Nothing happens where it is not served.
        """
        with self._lock:
            sockets = self._served.get(client)
            if sockets is None:
                return
            if self._loop is not None:
                self._loop.dismiss(client)
            for one in sockets:
                one.close()
            del self._served[client]  # last: whatever interrupts, the next time finds it

    def close(self) -> None:
        """Drop everybody and end the thread; twice is fine."""
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
        """In a forked child, which has the fds and not the thread: close them.  It serves nobody any more."""
        self._lock = threading.RLock()  # whoever held the old one is not here to release it
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
        # A daemon, for the interpreter waits for others before it calls what is registered with atexit,
        # which is where `close` comes from.
        thread = threading.Thread(target=self._run, args=(wake,), name="pycontain-names", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            os.close(wake.fd)
            raise
        self._wake, self._thread = wake, thread

    def _run(self, wake: _Wake) -> None:
        try:
            # Here: who serves the first container does not wait for what this loads.
            from pycontain._networks.serving import Loop

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
        except Exception as error:  # noqa: BLE001  the next `serve` tells
            self.errors.append(f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._gone = True
                if self._loop is not None:
                    self._loop.close()


def _sockets(udp_fd: int, tcp_fd: int) -> tuple[socket.socket, socket.socket]:
    """Both or none: what fails leaves the fds open."""
    udp = socket.socket(fileno=udp_fd)
    try:
        tcp = socket.socket(fileno=tcp_fd)
    except OSError:
        udp.detach()
        raise
    for one in (udp, tcp):
        one.setblocking(False)
    return udp, tcp
