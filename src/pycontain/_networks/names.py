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
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from pycontain._networks.serving import Loop
    from pycontain._networks.upstream import OpenSocket
    from pycontain._networks.zone import Client

_MOST_ERRORS = 64

Order = Callable[["Loop"], None]


@define(eq=False)
class _Orders:
    """What other threads want of the service's; an eventfd wakes it."""

    loop: Loop | None = None
    wake: int = field(factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    _waiting: deque[Order] = field(factory=deque)

    def put(self, order: Order) -> None:
        self._waiting.append(order)
        os.eventfd_write(self.wake, 1)

    def ready(self, mask: int) -> None:
        """Carry out what has come."""
        if self.loop is None:
            return
        os.eventfd_read(self.wake)
        while self._waiting:
            self._waiting.popleft()(self.loop)

    def fail(self) -> None:
        """The next one is another."""
        os.eventfd_write(self.wake, 1)


class NameService:
    """Answers containers, each by what its `Client` says.

    open_socket: makes the sockets that ask nameservers.  resolv_conf: where the host's nameservers are named.
    errors: what went wrong lately that nobody could be told.
    """

    def __init__(
        self, open_socket: OpenSocket = socket.socket, resolv_conf: str = "/etc/resolv.conf"
    ) -> None:
        self._open_socket, self._resolv_conf = open_socket, resolv_conf
        self._lock = threading.Lock()
        self._served: dict[Client, tuple[socket.socket, socket.socket]] = {}
        self._orders: _Orders | None = None
        self._thread: threading.Thread | None = None
        self._gone = threading.Event()
        self._dropping: set[threading.Event] = set()
        self._closed = False
        self.errors: deque[str] = deque(maxlen=_MOST_ERRORS)

    def serve(self, client: Client, udp_fd: int, tcp_fd: int) -> None:
        """Answer what comes to a bound UDP and a listening TCP socket; returns at once.

        The fds are taken over, unless this raises: ValueError for a client that is served, RuntimeError after
        `close` or where the thread ended or does not start, OSError for what is no socket.
        """
        with self._lock:
            if client in self._served:
                raise ValueError("this client is served already")
            if self._closed or self._gone.is_set():
                raise RuntimeError(f"the name service has ended: {', '.join(self.errors) or 'closed'}")
            orders = self._started()
            udp, tcp = _sockets(udp_fd, tcp_fd)
            self._served[client] = udp, tcp
            orders.put(lambda loop: loop.admit(client, udp, tcp))

    def drop(self, client: Client) -> None:
        """Answer it no longer; its sockets are closed when this returns.

        Nothing happens where it is not served.
        """
        dropped = threading.Event()
        with self._lock:
            sockets, orders = self._served.get(client), self._orders
            if sockets is None or orders is None:
                return
            if orders.loop is not None and threading.current_thread() is self._thread:
                orders.loop.dismiss(client)
                dropped.set()
            elif self._gone.is_set():
                dropped.set()
            else:
                self._dropping.add(dropped)
                orders.put(lambda loop: _dismiss(loop, client, dropped))
        dropped.wait()
        with self._lock:
            self._dropping.discard(dropped)
            if self._served.get(client) is sockets:
                del self._served[client]
        for one in sockets:
            one.close()

    def close(self) -> None:
        """Drop everybody and end the thread; twice is fine."""
        with self._lock:
            self._closed = True
            orders, thread = self._orders, self._thread
            if orders is None or thread is None:
                return
            orders.put(_stop)
        if thread is not threading.current_thread():
            thread.join()
        with self._lock:
            if self._orders is not None:
                os.close(self._orders.wake)
                self._orders = None
            self._close_sockets()

    def forget(self) -> None:
        """In a forked child, which has the fds and not the thread: close them.  It serves nobody any more."""
        self._lock = threading.Lock()  # whoever held the old one is not here to release it
        self._closed = True
        orders, self._orders, self._thread = self._orders, None, None
        if orders is not None:
            if orders.loop is not None:
                orders.loop.forget()
            os.close(orders.wake)
        self._close_sockets()

    def _close_sockets(self) -> None:
        for pair in self._served.values():
            for one in pair:
                one.close()
        self._served.clear()

    def _started(self) -> _Orders:
        if self._orders is None:
            orders = _Orders()
            # A daemon, for the interpreter waits for others before it calls what is registered with atexit,
            # which is where `close` comes from.
            thread = threading.Thread(target=self._run, args=(orders,), name="pycontain-names", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                os.close(orders.wake)
                raise
            self._orders, self._thread = orders, thread
        return self._orders

    def _run(self, orders: _Orders) -> None:
        try:
            # Here: who serves the first container does not wait for what this loads.
            from pycontain._networks.serving import Loop

            orders.loop = loop = Loop(self._open_socket, self._resolv_conf, self.errors)
            try:
                loop.selector.register(orders.wake, selectors.EVENT_READ, orders)
                loop.run()
            finally:
                loop.close()
        except Exception as error:  # noqa: BLE001  the next `serve` tells
            self.errors.append(f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._gone.set()
                for dropped in self._dropping:
                    dropped.set()


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


def _dismiss(loop: Loop, client: Client, dropped: threading.Event) -> None:
    try:
        loop.dismiss(client)
    finally:
        dropped.set()


def _stop(loop: Loop) -> None:
    loop.running = False
