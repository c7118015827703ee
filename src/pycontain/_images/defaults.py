"""From an image configuration, which strangers write, to the defaults of a container."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, TypedDict

from pycontain._model.sizes import shown
from pycontain._model.user import check_user
from pycontain.errors import ImageError

if TYPE_CHECKING:
    from pycontain._images.store import Store
    from pycontain.oci import ImageConfig

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Defaults(TypedDict):
    """Fields of an `Image`."""

    env: dict[str, str]
    user: str
    workdir: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    volumes: tuple[str, ...]
    labels: dict[str, str]
    stop_signal: int


def defaults_of(config: ImageConfig) -> Defaults:
    """Raises ImageError for a user, a signal or text that no container can have."""
    container = config.container
    try:
        user = check_user(container.user)
        for text in (*container.env, *container.entrypoint, *container.command, container.workdir):
            text.encode("utf-8", "surrogateescape")
    except (ValueError, TypeError) as error:
        raise ImageError(f"the image's configuration cannot be meant: {error}") from error
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
    """A path inside that is in its plain form; what is not says nothing that could be done."""
    return path.startswith("/") and path != "/" and os.path.normpath(path) == path


def _signal(text: str) -> int:
    """'SIGQUIT', 'QUIT' or '3'; real-time ones by number.  0 for none."""
    if not text:
        return 0
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= signal.SIGRTMAX:
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise ImageError(f"the image's stop signal is none: {shown(text)}") from None


def directories_of(store: Store, config: ImageConfig) -> tuple[str, ...]:
    """The layers as overlayfs takes them, the uppermost first, down to one that hides all below it."""
    found = []
    for chain in reversed(config.chain_ids):
        found.append(store.layer_path(chain))
        record = store.layer(chain)
        if record is not None and record.root_opaque:
            break
    return tuple(found) or (store.empty(),)
