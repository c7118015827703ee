"""The caller of the lab: it prepares the image and a frozen copy of the code, and requests runs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from attrs import asdict

from tests.security.inject.judge import judge
from tests.security.inject.model import PATIENCE, WAYS, Aim, Clean, Run, Unable
from tests.security.inject.report import Total


class Bench:
    """The caller's side: a lab that is replaced when a run hangs."""

    def __init__(self) -> None:
        self._check()
        self.top = Path(tempfile.mkdtemp(prefix="pyc-inject-"))
        self._lab: subprocess.Popen[str] | None = None
        self._complaints: IO[str] | None = None
        try:
            self._build()
            self.clean = self._observe()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _check() -> None:
        if platform.machine() != "x86_64":
            raise Unable("results are forged in the registers of x86_64 alone")
        if shutil.which("gcc") is None:
            raise Unable("no gcc for the probe")

    def _build(self) -> None:
        self.top.chmod(0o755)
        root = self.top / "rootfs"
        for name in ("bin", "etc", "proc", "dev", "tmp", "run", "sys", "root", "ro"):
            (root / name).mkdir(parents=True)
        (self.top / "shown").mkdir()
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        self._copy_code()
        source = Path(__file__).parent / "probe.c"
        done = subprocess.run(
            ["gcc", "-static", "-O1", "-o", str(root / "bin/probe"), str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Unable(f"the probe does not compile: {done.stderr[:300]}")

    def _copy_code(self) -> None:
        """Freeze a copy of the code, so that every lab runs the same version."""
        import pycontain

        code, here = self.top / "code", Path(__file__).parent
        shutil.copytree(Path(pycontain.__file__).parent, code / "pycontain")
        (code / "tests/security").mkdir(parents=True)
        for path in ("tests/__init__.py", "tests/security/__init__.py"):
            shutil.copy(here.parents[2] / path, code / path)
        shutil.copytree(here, code / "tests/security/inject", ignore=shutil.ignore_patterns("__pycache__"))

    def _observe(self) -> Clean:
        """Return the record of clean runs.  Views with and without tracing must agree."""
        plain = self._ask({"way": "plain", "trace": False})
        if plain.get("error"):
            raise Unable(f"no container starts here: {plain['error']}")
        views = tuple(plain["views"])
        calls = {}
        for way in WAYS:
            self._watched(way, views)  # the first of a way meets what later ones do not
            calls[way] = [(role, name, call) for role, name, call in self._watched(way, views)]
        return Clean(views, calls)

    def _watched(self, way: str, views: tuple[str, ...]) -> list[list[str]]:
        report = self._ask({"way": way, "calls": True})
        run = judge(None, report, views)
        if run.verdict != "same" or run.leaks:
            raise AssertionError(f"clean runs differ, {way}: {run.findings}"[:4000])
        calls: list[list[str]] = report["calls"]
        return calls

    def close(self) -> None:
        """End the lab and remove everything."""
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._retire()
            owners = self.top / "store/run/owners"
            if owners.is_dir() and os.listdir(owners):
                self._spawn()  # collects what a killed lab left
                self._retire()
        finally:
            shutil.rmtree(self.top, ignore_errors=True)

    def _retire(self) -> None:
        """Stop the lab normally."""
        try:
            if self._lab is not None:
                self._lab.communicate(timeout=30)
        finally:
            self._kill()

    def _spawn(self) -> subprocess.Popen[str]:
        self._complaints = tempfile.TemporaryFile("w+", prefix="pyc-inject-")  # noqa: SIM115  closed by _kill
        lab = self._lab = subprocess.Popen(
            [sys.executable, "-m", "tests.security.inject", "--lab", str(self.top)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            cwd=self.top / "code",
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(self.top / "code"), *filter(None, sys.path)]),
            },
        )
        if self._line(30) is None:
            raise Unable(f"the lab does not start: {self._kill()[-2000:]}")
        return lab

    def _line(self, patience: float) -> str | None:
        """Return a line of the lab, or None if it is silent or gone."""
        assert self._lab is not None
        assert self._lab.stdout is not None
        if not select.select([self._lab.stdout], [], [], patience)[0]:
            return None
        return self._lab.stdout.readline() or None

    def _kill(self) -> str:
        """Stop the lab and return its standard error."""
        lab, self._lab = self._lab, None
        if lab is not None:
            lab.kill()
            lab.wait()
            for stream in (lab.stdin, lab.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        said = ""
        if self._complaints is not None:
            self._complaints.seek(0)
            said = self._complaints.read()
            self._complaints.close()
            self._complaints = None
        return said

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        lab = self._lab or self._spawn()
        assert lab.stdin is not None
        lab.stdin.write(json.dumps(order) + "\n")
        lab.stdin.flush()
        line = self._line(PATIENCE)
        if line is None:
            silent = lab.poll() is None
            said = self._kill()
            return {"hang" if silent else "crash": said[-1500:]}
        answer: dict[str, Any] = json.loads(line)
        if "unable" in answer:
            raise Unable(answer["unable"])
        return answer

    def run(
        self, aim: Aim | None, *, security: dict[str, Any] | None = None, litter: str = "", trace: bool = True
    ) -> Run:
        """Run one aim and return the verdict."""
        order = {
            "aim": asdict(aim) if aim else None,
            "way": aim.way if aim else "plain",
            "security": security,
            "litter": litter,
            "trace": trace,
        }
        run = judge(aim, self._ask(order), self.clean.views)
        if run.leaks:  # a leak would be reported again after every later run
            self._retire()
        return run

    def run_all(
        self, aims: Sequence[Aim], seconds: float, tell: Callable[[str], object] = lambda _: None
    ) -> Total:
        """Run every aim until the time is over.  tell: called with each finding at once."""
        begun = time.monotonic()
        runs = []
        for aim in aims:
            if time.monotonic() - begun > seconds:
                break
            runs.append(self.run(aim))
            for line in runs[-1].findings:
                tell(line)
        left = len(aims) - len(runs)
        return Total(self.clean, tuple(runs), left, time.monotonic() - begun)
