"""A recorded history of a store, checked after a power loss at every moment."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from pycontain import Engine, Image
from tests.support.history import Event, Reader, record
from tests.support.powerloss import WAYS, Disk, Seen
from tests.support.served import Picture, write_archive
from tests.support.stores import PICTURES, TREE, A, B, C, Site, superfluous, wrong_images

EMPTY, SAME = "pyc.test/empty:latest", "pyc.test/same:latest"

Step: TypeAlias = tuple[Callable[[Engine], object], list[set[str]]]
"""An operation, with the image names that may exist meanwhile; the last one holds after it returns."""


def _many(where: Site) -> list[Step]:
    pulled = where.pulled
    kept = {pulled, C, A, TREE}
    return [
        (lambda e: Image.pull(pulled, insecure=True, engine=e), [{pulled}]),
        (lambda e: Image.get(pulled, engine=e).tag(C), [{pulled, C}]),
        (lambda e: Image.load(where.archive, engine=e), [{pulled, C, A}, {pulled, C, A, B}]),
        (lambda e: Image.from_rootfs(where.tree, copy=True, tag=TREE, engine=e), [{*kept, B}]),
        (lambda e: Image.get(B, engine=e).remove(), [kept]),
        (lambda e: e.prune(), [kept]),
        (lambda e: Image.load(where.archive, engine=e), [{*kept, B}]),
    ]


def _without_layers(where: Site) -> list[Step]:
    archive = Path(where.archive).with_name("empty.tar")
    write_archive(archive, {EMPTY: Picture([], "empty")})
    return [(lambda e: Image.load(archive, engine=e), [{EMPTY}])]


def _same_layers(where: Site) -> list[Step]:
    """Return a second image of the layers of the first: nothing is unpacked for it."""
    archive = Path(where.archive).with_name("same.tar")
    write_archive(archive, {SAME: Picture(PICTURES["b"].layers, "another")})
    return [
        (lambda e: Image.load(where.archive, engine=e), [{A}, {A, B}]),
        (lambda e: Image.load(archive, engine=e), [{A, B, SAME}]),
    ]


def _after_a_kill(where: Site) -> list[Step]:
    """Like `_same_layers`, after another process wrote documents and died before it recorded them."""
    from pycontain._images import blobs

    picture = Picture(PICTURES["b"].layers, "another")

    def brought(engine: Engine) -> None:
        kept = vars(blobs)["sync_directory"]
        vars(blobs)["sync_directory"] = lambda path: None
        for document in (picture.config, picture.manifest):
            blobs.put_document(engine._session.store, document)
        vars(blobs)["sync_directory"] = kept

    first, second = _same_layers(where)
    return [first, (brought, [{A, B}]), second]


SCRIPTS = {
    "many": _many,
    "without layers": _without_layers,
    "same layers": _same_layers,
    "after a kill": _after_a_kill,
}


def _recorded(steps: list[Step], root: Path, sabotage: Callable[[], object]) -> list[Event]:
    """Return the steps as events of the store's directory, with a mark where each has returned."""
    marks = root.with_name("marks")

    def work() -> None:
        sabotage()
        os.mkdir(marks)
        with Engine(root) as engine:
            for at, (do, _) in enumerate(steps):
                do(engine)
                os.mkdir(marks / str(at))
        # The log of the records is removed and made anew; nothing is asked to be kept.
        with Engine(root) as engine:
            with engine._session.store.leasing() as lease:
                lease.add("blob", engine._session.store.images()[0].digest)
            engine.sweep()

    return Reader(str(root / "data"), str(marks)).read(record(work))


def _moments(events: list[Event]) -> Iterator[tuple[int, bool]]:
    """Return the moments of power loss: around every sync, at each return, and at the end."""
    for at, event in enumerate(events):
        if event.kind in ("sync", "sync-all"):
            yield at, False
            yield at + 1, False
        elif event.kind == "mark":
            yield at + 1, True
    yield len(events), True


def _losses(events: list[Event], seeds: int, sample: int | None) -> Iterator[tuple[str, int, Seen]]:
    """Yield distinct disks after a loss, with a description and the number of calls that had returned.

    sample: so many, beside those where a call has just returned.
    """
    wanted = [
        (at, way, seed, returned)
        for at, returned in dict(_moments(events)).items()
        for way in WAYS
        for seed in range(seeds if way in ("torn", "mixed", "journal") else 1)
    ]
    chosen = {one[:3] for one in wanted if one[3]}
    rest = [one[:3] for one in wanted if not one[3]]
    chosen |= set(rest if sample is None else random.Random(1).sample(rest, min(sample, len(rest))))
    disk, done, taken, seen = Disk(), 0, 0, set[tuple[str, int]]()
    for at, way, seed in sorted(chosen):
        for event in events[taken:at]:
            disk.take(event)
            done += event.kind == "mark" and event.path.isdigit()
        taken = at
        lost = disk.after_loss(way, seed)
        if (lost.key, done) not in seen:
            seen.add((lost.key, done))
            yield f"{way} {seed} at {at} of {len(events)}, {done} calls returned", done, lost


def problems_of(root: Path, allowed: list[set[str]]) -> list[str]:
    """Return the problems of an engine that opens the disk after a loss."""
    with Engine(root) as engine:
        found = engine.fsck()
        names = set(engine._session.store.tags())
        if names not in allowed:
            found.append(f"there are {sorted(names)}")
        if len(engine.images) != len({*engine._session.store.tags().values()}):
            found.append("an image is not listed")
        found += wrong_images(engine)
        engine.sweep()
        found += superfluous(engine, root)
    return found


def lose_power(
    script: str, where: list[str], base: str, seeds: int, sample: int | None, harm: str = ""
) -> dict[str, Any]:
    """Record a script and check the store after every loss; return their number and the problems."""
    steps = SCRIPTS[script](Site(*where))
    events = _recorded(steps, Path(base, "store"), HARM[harm])
    ends: list[set[str]] = [set(), *(states[-1] for _, states in steps)]
    count, problems = 0, []
    # In memory if possible: the disk is a model, so this machine's disk does not matter.
    fast = tempfile.mkdtemp(prefix="pyc-lost-", dir="/dev/shm" if os.path.isdir("/dev/shm") else base)
    for words, done, lost in _losses(events, seeds, sample):
        root = Path(fast, "lost")
        (root / "data").mkdir(parents=True)
        lost.write(str(root / "data"))
        allowed = [ends[done], *(steps[done][1] if done < len(steps) else [])]
        try:
            problems += [f"{words}: {one}" for one in problems_of(root, allowed)]
        except Exception as error:  # noqa: BLE001  the disk that it was is what matters
            problems.append(f"{words}: {error!r}")
        count += 1
        shutil.rmtree(root)
    os.rmdir(fast)
    return {"events": len(events), "losses": count, "problems": problems}


def _nothing() -> None:
    pass


def _no_fsync() -> None:
    os.fsync = lambda fd: None


def _no_directories() -> None:
    from pycontain._images import blobs, ingest

    for module in (blobs, ingest):
        vars(module)["sync_directory"] = lambda path: None


def _no_syncfs() -> None:
    from pycontain._images.store import Store

    Store.sync = lambda self: None  # type: ignore[method-assign]


def _record_first() -> None:
    from pycontain._images.ingest import Ingest

    conclude = Ingest.conclude

    def early(self: Ingest, names: Any = (), origin: Any = None) -> Any:
        builds = dict(self._builds)
        self._record(names, origin)
        self._builds = builds
        return conclude(self, names, origin)

    Ingest.conclude = early  # type: ignore[method-assign]


HARM: dict[str, Callable[[], object]] = {
    "": _nothing,
    "no fsync": _no_fsync,
    "no fsync of directories": _no_directories,
    "no syncfs": _no_syncfs,
    "records first": _record_first,
}
"""Durability steps to disable in the recorded process, to see that each is needed."""
