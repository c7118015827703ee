"""Defaults of a container from an image configuration, which is untrusted."""

from __future__ import annotations

import errno
import os
import re
import signal
from typing import TYPE_CHECKING, TypedDict

from pycontain._kernel import native
from pycontain._kernel.hostpath import BENEATH_WITHOUT_LINKS
from pycontain._model.sizes import shown
from pycontain._model.user import check_user
from pycontain.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pycontain._images.store import Store
    from pycontain.oci import ImageConfig

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Defaults(TypedDict):
    """Fields of an `Image` that come from its configuration."""

    env: dict[str, str]
    user: str
    workdir: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    volumes: tuple[str, ...]
    labels: dict[str, str]
    stop_signal: int


def defaults_of(config: ImageConfig) -> Defaults:
    """Return the defaults of a configuration.

    Raises:
        ImageError: The user, the stop signal or a text is invalid.
    """
    container = config.container
    try:
        user = check_user(container.user)
        for text in (*container.env, *container.entrypoint, *container.command, container.workdir):
            text.encode("utf-8", "surrogateescape")
    except (ValueError, TypeError) as error:
        raise ImageError(f"invalid image configuration: {error}") from error
    return {
        "env": {"PATH": _PATH, **container.environment},
        "user": user,
        "workdir": os.path.normpath("/" + container.workdir).replace("//", "/"),
        "entrypoint": container.entrypoint,
        "command": container.command,
        "volumes": tuple(path for path in container.volumes if _is_place(path)),
        "labels": dict(container.labels),
        "stop_signal": _signal(container.stop_signal),
    }


def _is_place(path: str) -> bool:
    """Return whether a path is absolute and normalized; other volumes of an image are ignored."""
    return path.startswith("/") and path != "/" and os.path.normpath(path) == path


def _signal(text: str) -> int:
    """Parse 'SIGQUIT', 'QUIT', '3' or 'SIGRTMIN+3', which images of systemd use; 0 for an empty text."""
    if not text:
        return 0
    name, plus, offset = re.sub(r"([+-])", r" \1 ", text.upper(), count=1).partition(" + ")
    name, minus, back = name.partition(" - ") if not plus else (name, "", "")
    try:
        if name.isascii() and name.isdigit() and not plus and not minus:
            number = int(name[:9])
        else:
            number = int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
            number += int((offset or "0")[:3]) - int((back or "0")[:3])
            if (plus or minus) and not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
                raise ValueError
    except (KeyError, ValueError):
        number = 0
    if not 1 <= number <= signal.SIGRTMAX:
        raise ImageError(f"StopSignal of the image must be a signal, got {shown(text)}")
    return number


def directories_of(store: Store, config: ImageConfig) -> tuple[str, ...]:
    """Return the layer directories for overlayfs, the uppermost first, down to an opaque one."""
    found = []
    for chain in reversed(config.chain_ids):
        found.append(store.layer_path(chain))
        record = store.layer(chain)
        if record is not None and record.root_opaque:
            break
    return tuple(found) or (store.empty(),)


def is_empty_place(directories: Sequence[str], place: str) -> bool:
    """Return whether no layer has an entry below a path; False if a layer cannot be read."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    for directory in directories:
        top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            below = place.lstrip("/").encode("utf-8", "surrogateescape")
            fd = int(native.lib.pcx_openat2(top, below, flags, BENEATH_WITHOUT_LINKS, 0))
        finally:
            os.close(top)
        if fd == -errno.ENOENT:
            continue
        if fd < 0:
            return False
        try:
            if os.listdir(fd):
                return False
        finally:
            os.close(fd)
    return True
