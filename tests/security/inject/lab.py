"""The lab: a process with its own engine that performs a start, two execs and the end of a container."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycontain._kernel.pidfd import pid_of
from tests.security.inject.around import Around
from tests.security.inject.model import PATIENCE, Unable
from tests.security.inject.ptrace import libc
from tests.security.inject.view import limits, namespaces, normal

if TYPE_CHECKING:
    from pycontain import Container, Engine, Image


class Lab:
    """An engine and its tracer."""

    def __init__(self, top: Path) -> None:
        from pycontain import Engine, Image

        libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: adopt the children of a dead launcher
        self._engine: Engine = Engine(top / "store", ahead=0)
        self._image: Image = Image.from_rootfs(top / "rootfs", engine=self._engine)
        self._top = top
        self._namespaces = [f"{name}:{os.stat(f'/proc/self/ns/{name}').st_ino}" for name in namespaces()]
        many = self._engine._session.features.privileged or self._engine._session.sub_ids > 1000
        self._users = ("0:0", "1000:1000" if many else "0:0")
        self._tracer = subprocess.Popen(
            [sys.executable, "-m", "tests.security.inject", "--tracer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2):
            self._start({}, "plain")
        self._around = Around(self._engine, top, self._tracer.pid)

    def close(self) -> None:
        """End tracer and engine."""
        self._tracer.communicate()
        self._engine.close()

    def serve(self, order: dict[str, Any]) -> dict[str, Any]:
        """Perform one run: `aim` or none, its `way`, `security` to change, `litter` to leave on purpose."""
        pool, way, traced = self._engine._session.launchers, order["way"], order.get("trace", True)
        for one in [one for one in pool._free if pid_of(one.pidfd) < 0]:  # killed when it had done its work
            pool._free.remove(one)
            pool.drop(one)
        with pool.borrow():
            pass
        launcher, role = pid_of(pool._free[-1].pidfd), "launcher"
        if way == "fresh":
            launcher, role = os.getpid(), "lab"
            pool.drop(pool._free.pop())
        if traced:
            self._ask({"pid": launcher, "role": role, "aim": order.get("aim")})
        if order.get("litter"):
            self._around.leave(order["litter"])
        report = self._start(order.get("security") or {}, way)
        if traced:
            report |= self._ask({"calls": order.get("calls", False)})
        report["leaks"] = self._around.leaks()
        self._around.clear()
        self._engine._session.cleanup.errors.clear()
        return report

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._tracer.stdin is not None
        assert self._tracer.stdout is not None
        self._tracer.stdin.write(json.dumps(order) + "\n")
        self._tracer.stdin.flush()
        answer: dict[str, Any] = json.loads(self._tracer.stdout.readline())
        if "error" in answer:
            raise Unable(f"ptrace refuses: {answer['error']}")
        return answer

    def _container(self, security: dict[str, Any]) -> Container:
        from pycontain import Bind, Container, Security

        return Container(
            self._image,
            hostname="pyc-host",
            mounts={"/ro": Bind(self._top / "shown", read_only=True)},
            tmpfs=["/tmp"],
            security=Security.SANDBOX.evolve(**security),
            engine=self._engine,
        )

    def _start(self, security: dict[str, Any], way: str) -> dict[str, Any]:
        """Start a container, take two views of the guest, and end it."""
        self._engine._session.warm._last = float("-inf")  # no start follows another one: no container is warm
        report: dict[str, Any] = {"views": [], "codes": [], "error": None}
        try:
            self._make_ahead(security, way)
            container = self._container(security)
            try:
                container.start()
                self._look(container, report)
            finally:
                container.remove()
                self._engine._session.warm.discard()
                self._engine.settle()
        except Exception as error:  # noqa: BLE001  which one it is is what the run is about
            report |= _told(error)
        return report

    def _make_ahead(self, security: dict[str, Any], way: str) -> None:
        if way not in ("precloned", "warm"):
            return
        from pycontain._runtime.compile import root_plan_of

        engine, spec = self._engine, self._container(security).spec
        if way == "warm":
            engine._session.warm._make(spec, spec.hostname)
            return
        with engine._session.launchers.borrow() as launcher:
            engine._session.warm.precloned.refill(launcher, root_plan_of(engine._session, spec))

    def _look(self, container: Container, report: dict[str, Any]) -> None:
        outside = limits(container)
        for user in self._users:
            result = container.exec(["/bin/probe", *self._namespaces], user=user)
            report["codes"].append(result.returncode)
            text = result.stdout + result.stderr
            report["views"].append(normal(self._engine, container, text + outside if text else ""))


def _told(error: Exception) -> dict[str, Any]:
    from pycontain import PycontainError, StartError

    typed = isinstance(error, PycontainError | OSError)
    step = error.step if isinstance(error, StartError) else ""
    return {"error": f"{type(error).__name__}: {error}", "typed": typed, "step": step}


def lab_main(top: str) -> None:
    """Serve the caller: one line for a request, one line for its result."""
    libc.prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG: for a lab that hangs
    lab = Lab(Path(top))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        faulthandler.dump_traceback_later(PATIENCE - 1)
        try:
            answer = lab.serve(json.loads(line))
        except Unable as reason:
            answer = {"unable": str(reason)}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), flush=True)
    lab.close()
