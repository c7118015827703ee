"""The embedded default image: the host's /usr and the running interpreter, read-only.

A skeleton directory in the store has a minimal /etc, the links of a merged /usr and the mount points. The
host's trees are mounted read-only on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Sequence

from pycontain._rootfs import etc as packaged
from pycontain._state.locks import is_same_file, lock_within
from pycontain.errors import NotFound, PathError

_VERSION = "3"
_TREES = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_DIRECTORIES = {
    "proc": 0o555,
    "sys": 0o555,
    "dev": 0o755,
    "tmp": 0o1777,
    "run": 0o755,
    "var/tmp": 0o1777,
    "var/lib": 0o755,
    "root": 0o755,
    "home": 0o1777,
    "workspace": 0o777,
    "mnt": 0o755,
    "opt": 0o755,
    "srv": 0o755,
}
_MOUNTED = ("proc", "sys", "dev")
OWN_DIRECTORIES = tuple(
    (name, mode) for name, mode in {"var": 0o755, **_DIRECTORIES}.items() if name not in _MOUNTED
)
"""Directories of the skeleton that belong to the container's root, each after its parent, and their modes."""
_WRITTEN = {
    "passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        "user:x:1000:1000:user:/home:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    "shells": "/bin/sh\n/bin/bash\n",
}
_PRIVATE = {"/", "/root", "/home", "/var", "/srv", "/run", "/etc", "/tmp", "/opt", "/mnt", "/usr/local"}
_WHOLE = {"/", "/etc", "/proc", "/sys", "/dev", "/run", "/tmp", "/var", "/home", "/root"}


def trees() -> list[tuple[str, str]]:
    """Return (host directory, path inside) of all mounted trees, outer before inner."""
    shown = [(path, path) for path in _TREES if os.path.isdir(path) and not os.path.islink(path)]
    places = {place for _, place in shown}
    homes = {os.path.realpath(path) for path in _homes()}
    for prefix in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix):
        real = os.path.realpath(prefix)
        if real in _PRIVATE or real in homes or not os.path.isdir(real):
            continue
        for place in (real, os.path.abspath(prefix)):
            if not any(place == other or place.startswith(other + "/") for other in places):
                shown.append((real, place))
                places.add(place)
    return shown


def _homes() -> list[str]:
    """Return HOME and the home directory of passwd, so that neither is exposed if HOME is changed."""
    import pwd

    try:
        return [os.path.expanduser("~"), pwd.getpwuid(os.getuid()).pw_dir]
    except KeyError:
        return [os.path.expanduser("~")]


def search_path() -> str:
    """Return PATH for containers, with the interpreter's own directory first."""
    return ":".join(
        dict.fromkeys(
            [
                os.path.join(sys.prefix, "bin"),
                os.path.join(sys.base_prefix, "bin"),
                "/usr/local/sbin",
                "/usr/local/bin",
                "/usr/sbin",
                "/usr/bin",
                "/sbin",
                "/bin",
            ]
        )
    )


def added(paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Check the paths that a caller adds to the image.

    Raises:
        ValueError: A path is not absolute, or would expose the whole host or all of /etc.
        NotFound: A path does not exist.
    """
    given = (paths,) if isinstance(paths, str | os.PathLike) else paths
    found = []
    for one in dict.fromkeys(os.fspath(each) for each in given):
        path = os.path.normpath(one)
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"paths must be absolute, got {one!r}")
        if path in _WHOLE or path.startswith(("/proc/", "/sys/", "/dev/")):
            raise ValueError(f"paths must name a part of {path}, got {one!r}")
        if not os.path.exists(path):
            raise NotFound(f"{path} does not exist")
        found.append(path)
    return tuple(sorted(found))


def with_added(shown: list[tuple[str, str]], paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return the trees and the added paths, without those inside of others."""
    more = list(shown)
    for path in paths:
        if not any(path == place or path.startswith(place + "/") for _, place in more):
            more.append((os.path.realpath(path), path))
    return more


def empty_directory(skeleton_: str) -> str:
    """Return an empty directory of a skeleton: overlay takes no single layer without an upper directory."""
    return os.path.join(skeleton_, "mnt")


def skeleton(parent: str, shown: list[tuple[str, str]]) -> tuple[str, int]:
    """Return the skeleton directory below `parent` and a descriptor that keeps it from being pruned.

    It is made once per state of the machine.

    Args:
        parent: A directory of the store.
        shown: The trees, as `with_added` returns them.

    Raises:
        PathError: The skeleton cannot be written.
        OSError: The store cannot be read.
    """
    directory = os.path.join(parent, _key(shown))
    while True:
        if not os.path.isdir(directory):
            _make(parent, directory, shown)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                lock_within(lock, fcntl.LOCK_SH, directory)
                if is_same_file(lock, directory):
                    return directory, lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def _make(parent: str, directory: str, shown: list[tuple[str, str]]) -> None:
    os.makedirs(parent, mode=0o700, exist_ok=True)
    building = f"{directory}.{os.getpid()}-{threading.get_ident()}.new"
    shutil.rmtree(building, ignore_errors=True)
    try:
        _build(building, shown)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise PathError(
            f"host image in {parent} cannot be made: {error.strerror or error}",
            path=parent,
            errno=error.errno or 0,
            hint="raise RLIMIT_FSIZE of this process (`ulimit -f`)" if error.errno == errno.EFBIG else None,
        ) from error
    try:
        os.rename(building, directory)
    except OSError:  # another process was faster with the same content
        shutil.rmtree(building)
        if not os.path.isdir(directory):
            raise
    prune(parent, keep=directory)


def prune(parent: str, keep: str = "") -> int:
    """Remove the skeletons that no engine uses, and return their number."""
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(parent):
            path = os.path.join(parent, name)
            if path != keep and "." not in name:
                removed += _remove_unused(path)
    return removed


def _remove_unused(path: str) -> bool:
    """Remove a skeleton unless an engine holds its lock."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_same_file(lock, path):
            return False
        # Renamed first: an engine that opens the path now makes a new one.
        aside = f"{path}.{os.getpid()}-{threading.get_ident()}.old"
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError:  # in use, or another process was faster
        return False
    finally:
        os.close(lock)
    return True


def _key(shown: list[tuple[str, str]]) -> str:
    """Return a hash of everything that the skeleton depends on."""
    facts = [_VERSION, repr(shown), *packaged.facts()]
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _build(top: str, shown: list[tuple[str, str]]) -> None:
    os.mkdir(top, 0o755)
    for name, mode in _DIRECTORIES.items():
        path = os.path.join(top, name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
    for path in _TREES:
        if os.path.islink(path):
            os.symlink(os.readlink(path), os.path.join(top, path.lstrip("/")))
    _fill_etc(os.path.join(top, "etc"), [place for _, place in shown])
    for source, place in shown:
        _mount_point(os.path.join(top, place.lstrip("/")), is_directory=os.path.isdir(source))
    _show_to_all(top)


def _show_to_all(top: str) -> None:
    """Set modes that every user can read, independent of the caller's umask."""
    for directory, _, names in os.walk(top):
        if os.path.relpath(directory, top) not in _DIRECTORIES:
            os.chmod(directory, 0o755)
        for path in (os.path.join(directory, name) for name in names):
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)


def _mount_point(path: str, *, is_directory: bool) -> None:
    if is_directory:
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileExistsError), open(path, "xb"):
        pass


def _fill_etc(etc: str, shown: list[str]) -> None:
    os.makedirs(etc, exist_ok=True)
    for name in packaged.GENERATED:
        _copy(f"/etc/{name}", os.path.join(etc, name))
    for entry in packaged.carried(shown):
        target = os.path.join(etc, entry.path)
        if os.path.lexists(target):
            continue
        if entry.target is None:
            _copy_file(f"/etc/{entry.path}", target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(entry.target, target)
    for name, text in _WRITTEN.items():
        with open(os.path.join(etc, name), "w", encoding="ascii") as file:
            file.write(text)


def _copy_file(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        shutil.copyfile(source, target)
        os.chmod(target, 0o644 | os.stat(source).st_mode & 0o111)


def _copy(source: str, target: str) -> None:
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.basename(source) == "localtime":
            shutil.copyfile(source, target)
        elif os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.isdir(source):
            shutil.copytree(source, target, symlinks=True, ignore=_unreadable)
        else:
            shutil.copyfile(source, target)
    except FileNotFoundError:
        return


def _unreadable(directory: str, names: list[str]) -> set[str]:
    """Return the names of files that are not world-readable, which must not reach a container."""
    hidden = set()
    for name in names:
        found = os.lstat(os.path.join(directory, name))
        if not found.st_mode & 0o004:
            hidden.add(name)
    return hidden
