"""Operations on a store that are killed at any moment, and checks that the store is still complete.

The functions that take a directory run in a process of their own (`in_child`): they fork, and a test
process has threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from pycontain import Engine, Image, NotFound, PycontainError
from pycontain._state.locks import is_locked
from tests.support.served import Picture, Served, some_files, write_archive

ROOT = Path(__file__).resolve().parent.parent.parent
_BASE = some_files(1)
PICTURES = {
    # Three layers, the last with a whiteout in a directory that it does not name.
    "a": Picture([_BASE, some_files(2), {**some_files(3), "part1/.wh.file5": b""}], "a"),
    "b": Picture([_BASE, some_files(4)], "b"),
}
A, B, C, TREE = "pyc.test/a:latest", "pyc.test/b:latest", "pyc.test/c:latest", "pyc.test/tree:latest"
_AT_ONCE = 3
"""Layers that a pull fetches at once: as many parts may be left for the next one to go on with."""


@frozen
class Site:
    """Sources of images: a registry, an archive of both, a directory."""

    registry: str
    archive: str
    tree: str

    @property
    def pulled(self) -> str:
        """The name of what is pulled."""
        return f"{self.registry}/a:latest"


@contextlib.contextmanager
def site(directory: Path, pause: float = 0.0) -> Iterator[Site]:
    """Provide both images from every source."""
    write_archive(directory / "both.tar", {A: PICTURES["a"], B: PICTURES["b"]})
    tree = directory / "tree"
    for name, content in some_files(5).items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    with Served(PICTURES, pause) as served:
        yield Site(served.name, str(directory / "both.tar"), str(tree))


@frozen(kw_only=True)
class Work:
    """Something done to a store.  states: the names that there may be before, on the way and after."""

    do: Callable[[Engine, Site], object]
    states: Callable[[Site], list[set[str]]]
    prepare: Callable[[Engine, Site], object] = lambda engine, site: None


def _load(engine: Engine, site: Site) -> None:
    Image.load(site.archive, engine=engine)


def _load_and_forget(engine: Engine, site: Site) -> None:
    _load(engine, site)
    digest = Image.get(A, engine=engine).digest
    assert digest is not None
    engine._session.store.remove_image(digest)


def _save(engine: Engine, site: Site) -> None:
    target = Path(engine._session.roots.data).parent / "saved.tar"
    Image.get(A, engine=engine).save(target)


WORKS = {
    "pull": Work(
        do=lambda engine, site: Image.pull(site.pulled, insecure=True, engine=engine),
        states=lambda site: [set(), {site.pulled}],
    ),
    "load": Work(do=_load, states=lambda site: [set(), {A}, {A, B}]),
    "from_rootfs": Work(
        do=lambda engine, site: Image.from_rootfs(site.tree, copy=True, tag=TREE, engine=engine),
        states=lambda site: [set(), {TREE}],
    ),
    "tag": Work(
        prepare=_load,
        do=lambda engine, site: Image.get(A, engine=engine).tag(C),
        states=lambda site: [{A, B}, {A, B, C}],
    ),
    "remove": Work(
        prepare=_load,
        do=lambda engine, site: Image.get(A, engine=engine).remove(),
        states=lambda site: [{A, B}, {B}],
    ),
    "sweep": Work(
        prepare=_load_and_forget, do=lambda engine, site: engine.prune(), states=lambda site: [{B}]
    ),
    "save": Work(prepare=_load, do=_save, states=lambda site: [{A, B}]),
}


def leftovers(root: Path) -> dict[str, list[str]]:
    """Return the entries of a store's directories, by directory."""
    data = root / "data"
    names = {"blobs": "blobs/sha256", "layers": "layers", "partial": "partial", "live": "live"}
    return {kind: sorted(os.listdir(data / path)) for kind, path in names.items() if (data / path).is_dir()}


def bytes_in(root: Path) -> int:
    """Return the bytes of content below a store's directories, without the database."""
    total = 0
    for name in ("blobs", "layers", "partial", "live"):
        for directory, _, files in os.walk(root / "data" / name):
            total += sum(os.lstat(os.path.join(directory, file)).st_size for file in files)
    return total


def _picture(name: str) -> Picture | None:
    kind = name.rpartition("/")[2].partition(":")[0]
    return PICTURES["a"] if kind in ("a", "c") else PICTURES.get(kind)


def wrong_images(engine: Engine) -> list[str]:
    """Return images with a wrong file or digest."""
    problems: list[str] = []
    for name in engine._session.store.tags():
        picture = _picture(name)
        if picture is None:
            continue
        image = Image.get(name, engine=engine)
        if image.digest != picture.digest:
            problems.append(f"{name} is {image.digest}")
        problems += picture.wrong(image.directories)
    return problems


def superfluous(engine: Engine, root: Path) -> list[str]:
    """Return content that no image has, after a sweep."""
    found = leftovers(root)
    store = engine._session.store
    manifests = [image.manifest for image in Image.list(engine=engine) if image.manifest]
    wanted = {one.digest.hex for one in manifests} | {one.config.digest.hex for one in manifests}
    wanted |= {layer.digest.hex for one in manifests for layer in one.layers}
    chains = {chain.hex for one in manifests for chain, _ in store.parts(one.digest)}
    odd = [f"blob {name}" for name in set(found["blobs"]) ^ wanted]
    odd += [f"layer {name}" for name in set(found["layers"]) ^ chains]
    odd += [f"partial {name}" for name in found["partial"]]
    return odd + [f"live {name}" for name in os.listdir(engine._session.owner.live)]


def _held_on(root: Path) -> list[str]:
    """Return owners that outlive their process by seconds, held by a launcher that has just started."""
    until = time.monotonic() + 5
    while names := [
        name for name in os.listdir(root / "run/owners") if is_locked(str(root / "run/owners" / name))
    ]:
        if time.monotonic() > until:
            return [f"held {name}" for name in names]
        time.sleep(0.005)
    return []


def problems_of(root: Path, work: Work, where: Site) -> list[str]:
    """Return the problems of a store after `work` was killed; the check repeats the work to its end."""
    states = work.states(where)
    held = _held_on(root)
    with Engine(root) as engine:
        found = held + [
            f"live {name}" for name in leftovers(root)["live"] if name != engine._session.owner.name
        ]
        parts = [name for name in leftovers(root).get("partial", []) if not name.endswith(".layer")]
        if len(parts) > _AT_ONCE:
            found.append(f"{len(parts)} parts of blobs")
        found += engine.fsck()
        if (names := set(engine._session.store.tags())) not in states:
            found.append(f"a state between: {sorted(names)}")
        if len(engine.images) != len({*engine._session.store.tags().values()}):
            found.append("an image without a name, or a name without one")
        found += wrong_images(engine)
        with contextlib.suppress(NotFound):  # it may be removed already
            work.do(engine, where)
        if (names := set(engine._session.store.tags())) != states[-1]:
            found.append(f"done again, and there are {sorted(names)}")
        found += engine.fsck() + wrong_images(engine)
        engine.sweep()
        found += superfluous(engine, root)
        for image in engine.images:
            image.remove(force=True)
        engine.sweep()
        if bytes_in(root):
            found.append(f"space is not given back: {leftovers(root)}")
    return found


def prepared(root: Path, work: Work, where: Site) -> None:
    """Prepare a store for the work."""
    with Engine(root) as engine:
        work.prepare(engine, where)


def _work_in_fork(root: Path, work: Work, where: Site, wait: bool) -> tuple[int, int, int]:
    """Fork a child that does the work; return its pid, an fd that reports the start, one that permits it."""
    started, starting = os.pipe()
    waits, lets = os.pipe()
    pid = os.fork()
    if pid:
        os.close(starting)
        os.close(waits)
        return pid, started, lets
    code = 3
    try:
        engine = Engine(root)
        assert engine._session.store.tags() is not None  # the records are open
        os.write(starting, b"!")
        if wait:
            os.read(waits, 1)
        work.do(engine, where)
        engine.close()
        code = 0
    except PycontainError as error:
        print(repr(error), file=sys.stderr)
        code = 4
    except BaseException as error:  # noqa: BLE001  the parent sees the code
        print("untyped:", repr(error), file=sys.stderr)
    finally:
        os._exit(code)


def _span(root: Path, work: Work, where: Site) -> float:
    """Return seconds that the work takes."""
    prepared(root, work, where)
    with Engine(root) as engine:
        assert engine._session.store.tags() is not None
        begun = time.monotonic()
        work.do(engine, where)
    return time.monotonic() - begun


def kill_at_random(name: str, where: list[str], base: str, rounds: int, seed: int) -> dict[str, Any]:
    """Kill `rounds` processes that do a work, at random times; how many were cut off, and what was wrong."""
    work, place, source = WORKS[name], Site(*where), random.Random(seed)
    span = min(_span(Path(base, f"span{at}"), work, place) for at in range(2))
    cut, problems = 0, []
    for at in range(rounds):
        root = Path(base, str(at))
        prepared(root, work, place)
        pid, started, lets = _work_in_fork(root, work, place, wait=False)
        os.read(started, 1)
        delay = source.uniform(0, span)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        cut += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        os.close(started)
        os.close(lets)
        problems += [f"round {at}, {delay:.4f} s: {one}" for one in problems_of(root, work, place)]
        subprocess.run(["rm", "-rf", str(root)], check=True)
    return {"cut": cut, "problems": problems, "span": span}


def kill_at_calls(name: str, where: list[str], base: str, call: str, step: int, most: int) -> dict[str, Any]:
    """Kill at each `step`th system call of a kind, of whichever of the processes makes it.

    A launcher that is hit ends alone: then the work must have failed with an error of ours.
    """
    work, place = WORKS[name], Site(*where)
    cut, codes, problems = 0, [], []
    for when in range(1, most + 1, step):
        root = Path(base, f"{call}{when}")
        prepared(root, work, place)
        pid, started, lets = _work_in_fork(root, work, place, wait=True)
        os.read(started, 1)
        inject = f"inject={call}:signal=SIGKILL:when={when}"
        tracer = subprocess.Popen(
            ["strace", "-f", "-p", str(pid), "-e", f"trace={call}", "-e", inject, "-o", "/dev/null"],
            stderr=subprocess.PIPE,
        )
        assert tracer.stderr is not None
        tracer.stderr.readline()  # "attached"
        os.write(lets, b"!")
        status = os.waitpid(pid, 0)[1]
        tracer.communicate()
        os.close(started)
        os.close(lets)
        cut += os.WIFSIGNALED(status)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] == 3:
            problems.append(f"{call} {when}: an untyped error")
        problems += [f"{call} {when}: {one}" for one in problems_of(root, work, place)]
        subprocess.run(["rm", "-rf", str(root)], check=True)
        if codes[-1] == 0:
            break  # it made no more calls than that
    return {"cut": cut, "codes": codes, "problems": problems}


def in_child(function: Callable[..., Any], *arguments: object, timeout: float = 280) -> Any:
    """Call a function in a subprocess and return its result; arguments and result are JSON."""
    code = (
        "import json, sys\n"
        f"from {function.__module__} import {function.__name__} as run\n"
        "print(json.dumps(run(*json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, Mapping | list)
    return result
