"""Stores on file systems that are too small for the operation."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycontain import Engine, ImageError, PathError
from tests.support.stores import WORKS, Site, Work, bytes_in, leftovers, prepared, superfluous, wrong_images

_CLONE_NEWNS = 0x00020000
_ROOM = "64m"


def _apart() -> None:
    """Give this process a private mount namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(_CLONE_NEWNS)
        or subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode
    ):
        raise OSError(ctypes.get_errno(), "unshare")


def _resize(root: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(root)], check=True)


def _mounted(root: Path, size: str) -> None:
    root.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes=0", "pyc-full", str(root)], check=True
    )


def _used(root: Path) -> int:
    found = os.statvfs(root)
    return (found.f_blocks - found.f_bfree) * found.f_bsize


def _refused(do: Callable[[], object], root: Path) -> tuple[bool, list[str]]:
    """Return whether the work was refused, and the problems of the refusal."""
    try:
        do()
    except (ImageError, PathError) as error:
        return True, [] if str(root) in str(error) else [f"the error names no path: {error!r}"]
    except Exception as error:  # noqa: BLE001  which is what is looked for
        return True, [f"untyped: {error!r}"]
    return False, []


def _one(root: Path, work: Work, where: Site, room: int) -> tuple[bool, list[str]]:
    """Run the work with so many bytes of room, then with enough."""
    _mounted(root, _ROOM)
    prepared(root, work, where)
    _resize(root, str(max(4096, _used(root) + room)))  # 0 would be without end
    states = work.states(where)
    with Engine(root) as engine:
        refused, found = _refused(lambda: engine._session.store.tags(), root)
        before = bytes_in(root)
        if not refused:
            refused, found = _refused(lambda: work.do(engine, where), root)
        done = not refused
        found += [f"live {name}" for name in os.listdir(engine._session.owner.live)]
        if refused and (odd := [name for name in os.listdir(root) if name.endswith(".part")]):
            found.append(f"left: {odd}")
        _resize(root, _ROOM)
        if (names := set(engine._session.store.tags())) not in (states if refused else states[-1:]):
            found.append(f"there are {sorted(names)}")
        found += engine.fsck() + wrong_images(engine)
        if names == states[0]:
            engine.sweep()
            if (after := bytes_in(root)) > before:
                found.append(f"{after - before} bytes are not given back: {leftovers(root)}")
            work.do(engine, where)
        found += wrong_images(engine)
        engine.sweep()
        found += superfluous(engine, root)
    subprocess.run(["umount", "-l", str(root)], check=True)
    return done, found


def fill_up_untranslated(name: str, where: list[str], base: str, rooms: list[int]) -> dict[str, Any]:
    """Control: run `fill_up` without the translation of OSError."""
    from pycontain._images import store_errors

    for name_of_translation in ("translate_store_errors", "translate_path_errors"):
        vars(store_errors)[name_of_translation] = lambda place: contextlib.nullcontext()
    return fill_up(name, where, base, rooms)


def fill_up(name: str, where: list[str], base: str, rooms: list[int]) -> dict[str, Any]:
    """Run a work in stores with more and more room; return counts of refusals and successes, and problems."""
    _apart()
    done, problems = 0, []
    for at, room in enumerate(rooms):
        well, found = _one(Path(base, f"full{at}"), WORKS[name], Site(*where), room)
        done += well
        problems += [f"{room} bytes: {one}" for one in found]
    return {"done": done, "refused": len(rooms) - done, "problems": problems}
