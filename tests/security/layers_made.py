"""Random layers from a seed: ordinary ones, and ones that no tool would write."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.support.images import TIME, Entry, device, directory, fifo, file, hard, symlink

NAMES = ("a", "b", "c", "d.d", "é", "x y")
MODES = (0o644, 0o755, 0o600, 0o000, 0o4755, 0o2755, 0o1777, 0o7777, 0o400)
DIRECTORY_MODES = (0o755, 0o700, 0o1777, 0o711, 0o000)
"""Modes of directories.  No set-group-id, since other unpackers let entries below inherit the group."""


def _path(chosen: random.Random) -> str:
    """Return a path, mostly below names that are usually directories."""
    parts = [chosen.choice("de") for _ in range(chosen.choice((0, 0, 1, 1, 2)))]
    if chosen.random() < 0.1:
        parts.append(chosen.choice(NAMES))
    return "/".join([*parts, chosen.choice(NAMES)])


def _dress(chosen: random.Random) -> dict[str, object]:
    dress: dict[str, object] = {
        "mode": chosen.choice(MODES),
        "owner": (chosen.choice((0, 1, 1000, 65534, 70000)), chosen.choice((0, 5, 1000))),
        "mtime": TIME + chosen.randrange(-1000, 1000),
    }
    if chosen.random() < 0.15:
        dress["pax"] = {"SCHILY.xattr.user.note": str(chosen.random()), "mtime": f"{TIME}.25"}
    return dress


def _friendly(chosen: random.Random, layer: list[Entry], below: list[str]) -> Entry:
    path, dress = _path(chosen), _dress(chosen)
    files = [str(one.name) for one in layer if one.kind == b"0" and ".wh." not in str(one.name)]
    kind = chosen.random()
    if kind < 0.35:
        return Entry(name=path, data=chosen.randbytes(chosen.choice((0, 10, 600))), **dress)  # type: ignore[arg-type]
    if kind < 0.65:
        dress["mode"] = chosen.choice(DIRECTORY_MODES)
        return Entry(name=path + chosen.choice(("", "/")), kind=b"5", **dress)  # type: ignore[arg-type]
    if kind < 0.75:
        return symlink(path, chosen.choice(("/none", "../a", "a", "/a/b", ".")))
    if kind < 0.85 and files:
        return hard(path, chosen.choice(files))
    if kind < 0.9:
        return fifo(path, mode=0o600)
    parent, _, name = (chosen.choice(below) if below else path).rpartition("/")
    place = f"{parent}/" if parent else ""
    return file(f"{place}.wh..wh..opq") if kind > 0.97 else file(f"{place}.wh.{name}")


def _hostile(chosen: random.Random, layer: list[Entry], below: list[str]) -> Entry:
    path = _path(chosen)
    odd: list[Callable[[], Entry]] = [
        lambda: file(f"../{path}"),
        lambda: file(f"{path}/../../../{path}"),
        lambda: symlink(path, "../" * 30),
        lambda: symlink(path, "/"),
        lambda: hard(path, "/etc/passwd"),
        lambda: hard(path, f"../{path}"),
        lambda: file(f"{path}/.wh..."),
        lambda: file(f"{path}/.wh."),
        lambda: device(path, 1, 3),
        lambda: device(path, 0, 0),
        lambda: directory(".", 0o700),
        lambda: symlink(".", "/tmp"),
        lambda: file(path, pax={"SCHILY.xattr.trusted.overlay.opaque": "y"}),
        lambda: directory(path, pax={"SCHILY.xattr.user.overlay.opaque": "y"}),
    ]
    return chosen.choice(odd)()


def _add(layer: list[Entry], one: Entry, *, first: bool) -> None:
    """Put opaque marks before the entries that they keep, and drop whiteouts of hidden entries."""
    if ".wh..wh." in str(one.name):
        if not first and not any(".wh." in str(other.name) for other in layer):
            layer.insert(0, one)
    elif ".wh." not in str(one.name) or (
        not first and not any(".wh..wh." in str(other.name) for other in layer)
    ):
        layer.append(one)


def made(seed: int, *, hostile: bool) -> list[list[Entry]]:
    """Return a few layers, equal for equal seeds."""
    chosen = random.Random(seed)
    layers: list[list[Entry]] = []
    for at in range(chosen.choice((1, 2, 2, 3, 4))):
        layer: list[Entry] = []
        below = [
            str(one.name).rstrip("/") for lower in layers for one in lower if ".wh." not in str(one.name)
        ]
        for _ in range(chosen.randrange(2, 14)):
            one = (_hostile if hostile and chosen.random() < 0.2 else _friendly)(chosen, layer, below)
            _add(layer, one, first=at == 0)
        layers.append(layer)
    return layers
