"""Files of a running container: requests to its file server, with errors and ids for the caller."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pycontain._kernel.file_server import FileServer, Verb
from pycontain._kernel.unpacker import User
from pycontain._model.user import asked_user
from pycontain._runtime.users import ROOT, open_inside, resolve
from pycontain._state.owner import BLOCK
from pycontain.errors import StateError, path_error

if TYPE_CHECKING:
    from pycontain._runtime.running import Running

_NOBODY = 65534
_LONGEST = 4096
_ENAMETOOLONG, _EOPNOTSUPP = 36, 95
_HINTS = {
    _EOPNOTSUPP: "only files and directories are opened, and none of what the kernel shows in /proc and /sys"
}


def encoded(path: str) -> bytes:
    """Return a path as bytes.

    Raises:
        ValueError: It contains a NUL byte.
        PathError: It is too long.
    """
    raw = path.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ValueError(f"path must have no NUL byte, got {path[:80]!r}")
    if len(raw) >= _LONGEST:
        raise path_error("cannot use", path[:80] + "...", _ENAMETOOLONG)
    return raw


def decoded(name: str) -> str:
    """Return a name as text in UTF-8, from what `os` decoded by the caller's locale."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "surrogateescape")


def ask(running: Running, verb: Verb, path: str, second: str = "", **options: Any) -> int:
    """`FileServer.ask` of this container's server, started if need be.

    Raises PathError with the path, StateError when the container ended, ValueError.
    """
    with running.in_use():
        return _ask(running, verb, path, second, options)


def _ask(running: Running, verb: Verb, path: str, second: str, options: dict[str, Any]) -> int:
    raw, other = encoded(path), encoded(second)
    for last in (False, True):
        file_server = _file_server(running)
        try:
            return file_server.ask(verb, raw, other, **options)
        except ConnectionError as error:
            running.drop_file_server(file_server)
            if running.dead:
                raise StateError(f"container {running.spec.name} has ended") from error
            # After a broken pipe the server had not received the request, so it can be repeated.
            if last or not isinstance(error, BrokenPipeError):
                raise StateError(
                    f"the files server of container {running.spec.name} died",
                    hint="check whether the last operation was done, and repeat it if not",
                ) from error
        except OSError as error:
            errno = error.errno or 0
            raise path_error(f"cannot {_names(verb)}", path, errno, _HINTS.get(errno)) from error
    raise AssertionError("not reached")


def _names(verb: Verb) -> str:
    return {Verb.LINK: "link", Verb.SET: "change"}.get(verb, verb.name.lower())


def _file_server(running: Running) -> FileServer:
    with running.file_server_lock:
        if running.file_server is None:
            if not running.spec.init:
                raise StateError(
                    "a container with init=False has no agent to open its files", hint="leave init=False out"
                )
            root = open_inside(running, "/", os.O_RDONLY | os.O_DIRECTORY)
            try:
                made = FileServer(root, running.pidfd, landlock=running.session.features.landlock)
            except OSError as error:
                if running.dead:
                    raise StateError(f"container {running.spec.name} has ended") from error
                raise
            finally:
                os.close(root)
            if running.ended:
                made.close()
                raise StateError(f"container {running.spec.name} has ended")
            running.file_server = made
        return running.file_server


def user_of(running: Running, name: str | int | None) -> User:
    """Return uid, gid and groups inside of a user.

    Args:
        running: The container.
        name: 'name', 'uid', 'name:group' or 'uid:gid'; None for the user of the container.

    Raises:
        NotFound: The image has no such user.
        ValueError: The text is none of these.
    """
    wanted = running.spec.user if name is None else asked_user(name)
    identity = resolve(running, str(wanted)) if wanted not in (None, "") else ROOT
    return identity.uid, identity.gid, identity.groups


def seen_inside(running: Running, found: os.stat_result) -> os.stat_result:
    """Return the status of a file with ids as the guest sees them, 65534 for those without a mapping."""
    reduced: Any = found.__reduce__()
    kind, (values, more) = reduced
    parts = list(values)
    parts[4] = _inside(running, found.st_uid, 0)
    parts[5] = _inside(running, found.st_gid, 1)
    changed: os.stat_result = kind(parts, more)
    return changed


def _inside(running: Running, id: int, which: int) -> int:
    if running.block is not None:
        return id - running.block if 0 <= id - running.block < BLOCK else _NOBODY
    maps = running.session.id_maps
    if maps is None:
        return 0 if id == (os.getuid(), os.getgid())[which] else _NOBODY
    numbers = [int(text) for text in maps[which]]
    for inside, outside, count in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        if outside <= id < outside + count:
            return inside + id - outside
    return _NOBODY
