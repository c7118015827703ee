"""Many processes that run random operations on one store at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycontain import Container, Engine, Image, NotFound
from pycontain.oci import Digest
from tests.support.served import Picture, busybox_files, some_files
from tests.support.stores import bytes_in, leftovers, superfluous

PATIENCE = 30.0
"""Seconds after which something is held to be locked for good."""
KINDS = ("one", "two", "three")
TAGS = ("pyc.test/x:latest", "pyc.test/y:latest", "pyc.test/z:latest")


def pictures() -> dict[str, Picture]:
    """Return images that share layers; each has a file that says which it is."""
    base, middle = busybox_files(), some_files(7)
    return {
        "one": Picture([base, {"mark": b"one"}], "one"),
        "two": Picture([base, middle, {"mark": b"two"}], "two"),
        "three": Picture([base, middle, {"mark": b"three"}, some_files(8)], "three"),
    }


class _Worker:
    """One process: does something random again and again, and notes what should not be."""

    def __init__(self, root: str, registry: str, scratch: Path, seed: int) -> None:
        self.engine = Engine(root)
        self.registry, self.scratch = registry, scratch
        self.random = random.Random(seed)
        made = pictures()
        self.pictures = {picture.digest: (kind, picture) for kind, picture in made.items()}
        self.digests = {kind: picture.digest for kind, picture in made.items()}
        self.done: dict[str, int] = {}
        self.gone = 0
        self.slowest = 0.0
        self.problems: list[str] = []
        self.work: list[Callable[[], None]] = [
            *[self.pull] * 4,
            *[self.run] * 4,
            *[self.tag] * 2,
            self.remove,
            self.save,
            self.prune,
        ]

    def until(self, end: float) -> None:
        """Work until a moment of the monotonic clock."""
        while time.monotonic() < end:
            do = self.random.choice(self.work)
            begun = time.monotonic()
            try:
                do()
                self.done[do.__name__] = self.done.get(do.__name__, 0) + 1
            except NotFound:  # another has removed it
                self.gone += 1
            except Exception as error:  # noqa: BLE001  whatever else it is, is what is looked for
                self.problems.append(f"{do.__name__}: {error!r}")
            past = time.monotonic() - begun
            self.slowest = max(self.slowest, past)
            if past > PATIENCE:
                self.problems.append(f"{do.__name__} took {past:.0f} seconds")

    def _name(self) -> str:
        names = [f"{self.registry}/{kind}:latest" for kind in KINDS]
        return self.random.choice([*names, *TAGS])

    def _get(self) -> tuple[Image, str, Picture]:
        image = Image.get(self._name(), engine=self.engine)
        return image, *self.pictures[str(image.digest)]

    def pull(self) -> None:
        """Pull an image and check its contents."""
        kind = self.random.choice(KINDS)
        image = Image.pull(f"{self.registry}/{kind}", insecure=True, engine=self.engine)
        if image.digest != self.digests[kind]:
            self.problems.append(f"pull of {kind} is {image.digest}")

    def run(self) -> None:
        """Run a container and check its files, while others may remove the image."""
        image, kind, picture = self._get()
        with Container(image, engine=self.engine) as container:
            said = container.exec(["cat", "/mark"]).stdout
            if said != kind:
                self.problems.append(f"a container of {kind} says {said!r}")
            time.sleep(self.random.uniform(0, 0.05))
            self.problems += [f"while it runs: {one}" for one in picture.wrong(image.directories)]

    def tag(self) -> None:
        """Tag one of the images; other processes use the same names."""
        image, _, _ = self._get()
        image.tag(self.random.choice(TAGS))

    def remove(self) -> None:
        """Remove an image with its content."""
        image, _, _ = self._get()
        image.remove(force=self.random.random() < 0.5)

    def save(self) -> None:
        """Save an archive and check that it is complete or absent."""
        image, _, picture = self._get()
        path = self.scratch / f"{os.getpid()}.tar"
        image.save(path)
        with tarfile.open(path) as archive:
            for digest, data in picture.blobs.items():
                file = archive.extractfile(f"blobs/sha256/{digest[7:]}")
                if file is None or file.read() != data:
                    self.problems.append(f"saved: {digest}")
        path.unlink()

    def prune(self) -> None:
        """Remove unused content."""
        self.engine.prune()


def _work(root: str, registry: str, scratch: Path, seed: int, end: float) -> None:
    worker = _Worker(root, registry, scratch, seed)
    worker.until(end)
    worker.engine.close()
    names = ("done", "gone", "slowest", "problems")
    (scratch / f"{seed}.json").write_text(json.dumps({name: getattr(worker, name) for name in names}))


def share(registry: str, base: str, processes: int, seconds: float) -> dict[str, Any]:
    """Run `processes` workers for `seconds`; return their counts and the faults seen then and after."""
    root, scratch = os.path.join(base, "store"), Path(base, "scratch")
    scratch.mkdir()
    end = time.monotonic() + seconds
    pids = []
    for seed in range(processes):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _work(root, registry, scratch, seed, end)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    problems = [f"a process ended with {code}" for code in codes if code]
    accounts = [json.loads(path.read_text()) for path in scratch.glob("*.json")]
    for account in accounts:
        problems += account["problems"]
    shutil.rmtree(scratch)
    problems += _after(root)
    return {
        "done": sum(sum(account["done"].values()) for account in accounts),
        "gone": sum(account["gone"] for account in accounts),
        "slowest": max((account["slowest"] for account in accounts), default=0.0),
        "kinds": sorted({kind for account in accounts for kind in account["done"]}),
        "problems": problems,
    }


def _after(root: str) -> list[str]:
    """Check the store at the end: complete, and empty after its images are removed."""
    known = {picture.digest: picture for picture in pictures().values()}
    with Engine(root) as engine:
        found = engine.fsck()
        for image in engine.images:
            found += known[str(image.digest)].wrong(image.directories)
        found += [
            f"nothing has the name {name}"
            for name, to in engine._session.store.tags().items()
            if not _is(engine, to)
        ]
        engine.sweep()
        found += superfluous(engine, Path(root))
        for image in engine.images:
            image.remove(force=True)
        engine.sweep()
        if bytes_in(Path(root)):
            found.append(f"space is not given back: {leftovers(Path(root))}")
    return found


def _is(engine: Engine, digest: Digest) -> bool:
    return engine._session.store.record(digest) is not None
