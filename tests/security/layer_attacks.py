"""Hostile layers that try to leave their directory, with the expected outcome of each.

`hurt(case)` unpacks them as they are and says whose canary was touched: for builds without their walls.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from pycontain import Engine, Image, ImageError
from tests.security.conftest import Canary, kept
from tests.support.images import (
    Entry,
    device,
    directory,
    extended,
    fifo,
    file,
    hard,
    oci_layout,
    record,
    symlink,
    tar,
)

Layers = list[list[Entry | bytes]]
UP = "../" * 24


@frozen
class Attack:
    """An attack.  layers: for the path of a canary.  refused: it must fail, else it may stay inside."""

    case: str
    name: str
    layers: Callable[[str], Layers]
    refused: bool = True


def _names() -> Iterator[Attack]:
    """P01: yield names that point out of the layer."""
    spelled: dict[str, tuple[Callable[[str], str | bytes], bool]] = {
        "dotdot": (lambda to: f"{UP}{to}/secret", True),
        "dotdot after a directory": (lambda to: f"a/{UP}{to}/secret", True),
        "dotdot at the end": (lambda to: f"a/b/../{UP}{to}/../canary/secret", True),
        "absolute": (lambda to: f"{to}/secret", False),
        "two slashes": (lambda to: f"/{to}/secret", False),
        "dots": (lambda to: f"/././{to}/./secret", False),
        "trailing slash": (lambda to: f"{to}/secret/", False),
        "dotdot alone": (lambda to: "..", True),
        "new": (lambda to: f"{UP}{to}/new", True),
    }
    for name, (spell, refused) in spelled.items():
        yield Attack("P01", name, lambda to, spell=spell: [[file(spell(to), b"gone")]], refused)  # type: ignore[misc, arg-type]
    yield Attack(
        "P01",
        "in an extended header",
        lambda to: [[extended(record("path", f"{UP}{to}/secret")) + bytes(file("a", b"gone"))]],
    )
    yield Attack(
        "P01",
        "with a NUL",
        lambda to: [[extended(record("path", f"{to}/secret\0/a")) + bytes(file("a", b"gone"))]],
    )


LINKS: dict[str, Callable[[str], list[Entry]]] = {
    "absolute": lambda to: [symlink("link", to)],
    "relative": lambda to: [symlink("link", f"{UP}{to.lstrip('/')}")],
    "chain": lambda to: [symlink("one", to), symlink("two", "one"), symlink("link", "./two")],
    "dotted": lambda to: [directory("d"), symlink("link", f"d/../{UP}.{to}")],
}
THROUGH: dict[str, list[Entry | bytes]] = {
    "a file": [file("link/secret", b"gone")],
    "a new file": [file("link/new", b"gone")],
    "a directory": [directory("link/inner", 0o700)],
    "a pipe": [fifo("link/secret")],
    "a device": [device("link/new", 1, 3)],
    "a link": [symlink("link/secret", "/none")],
    "a hard link to it": [hard("stolen", "link/secret"), file("stolen", b"gone")],
    "a hard link of its name": [file("own", b"gone"), hard("link/secret", "own")],
    "a whiteout": [file("link/.wh.secret")],
    "a whiteout of nothing": [file("link/.wh.new")],
    "an opaque mark": [file("link/.wh..wh..opq")],
    "two deep": [file("link/inner/secret", b"gone")],
}


def _through() -> Iterator[Attack]:
    """P02, P03: yield a link and an entry through it, in one layer and in the next."""
    for (link, make), (what, then) in itertools.product(LINKS.items(), THROUGH.items()):

        def one(
            to: str, make: Callable[[str], list[Entry]] = make, then: list[Entry | bytes] = then
        ) -> Layers:
            return [[*make(to), *then]]

        def two(
            to: str, make: Callable[[str], list[Entry]] = make, then: list[Entry | bytes] = then
        ) -> Layers:
            return [[*make(to)], [*then]]

        def inside(
            to: str, make: Callable[[str], list[Entry]] = make, then: list[Entry | bytes] = then
        ) -> Layers:
            """Return the layer's own entries of the same names, to which the link may resolve."""
            own: list[Entry | bytes] = [directory(f"{to}/inner"), file(f"{to}/secret", b"inside")]
            return [[*own, *make(to), *then]]

        yield Attack("P02", f"{link} link, then {what}", one)
        if link not in ("absolute", "chain"):
            continue
        yield Attack("P02", f"{link} link that has where to lead, then {what}", inside, refused=False)
        yield Attack("P03", f"{link} link, then {what} in the next layer", two, refused=False)


def _roots() -> Iterator[Attack]:
    """P03: yield entries that replace the root."""
    for name in (".", "./", "/.", "/", "././"):
        yield Attack(
            "P03",
            f"{name} as a link",
            lambda to, name=name: [[symlink(name, to)], [file("secret")]],  # type: ignore[misc, arg-type]
        )
        yield Attack("P03", f"{name} as a pipe", lambda to, name=name: [[fifo(name)]])  # type: ignore[misc, arg-type]
        yield Attack("P03", f"{name} as a hard link", lambda to, name=name: [[hard(name, f"{to}/secret")]])  # type: ignore[misc, arg-type]
    yield Attack("P03", ". as a file", lambda to: [[file(".", b"x")]])
    yield Attack(
        "P03",
        "a directory turned into a link",
        lambda to: [[directory("d"), file("d/secret")], [symlink("d", to)], [file("d/secret", b"gone")]],
        refused=False,
    )
    yield Attack(
        "P03",
        "a directory turned into a link and removed",
        lambda to: [[directory("d")], [symlink("d", to)], [file("d/.wh.secret")]],
        refused=False,
    )


def _hard_links() -> Iterator[Attack]:
    """P04: yield hard links to files outside of the layer."""
    targets: dict[str, Callable[[str], str]] = {
        "dotdot": lambda to: f"{UP}{to}/secret",
        "absolute": lambda to: f"{to}/secret",
        "dotdot inside": lambda to: f"a/{UP}{to}/secret",
        "a directory": lambda to: "a",
        "the root": lambda to: "/",
        "nothing": lambda to: "missing",
        "itself": lambda to: "stolen",
        "what comes later": lambda to: "later",
        "empty": lambda to: "",
    }
    for name, spell in targets.items():

        def one(to: str, spell: Callable[[str], str] = spell) -> Layers:
            return [[directory("a"), hard("stolen", spell(to)), file("stolen", b"gone"), file("later")]]

        yield Attack("P04", name, one)
    yield Attack("P04", "a file that stays", lambda to: [[hard("stolen", f"{UP}{to}/secret")]])
    yield Attack(
        "P04",
        "a link to the outside",
        lambda to: [[symlink("s", f"{to}/secret"), hard("stolen", "s"), file("stolen", b"gone", mode=0o777)]],
        refused=False,
    )
    yield Attack(
        "P04",
        "below a link to the outside",
        lambda to: [[symlink("s", to), hard("stolen", "s/secret"), file("stolen", b"gone")]],
    )
    yield Attack("P04", "in the layer below", lambda to: [[file("a")], [hard("stolen", "a")]])


_ATTRIBUTES = {"SCHILY.xattr.user.pyc": "x", "SCHILY.acl.access": "user::rwx,group::rwx,other::rwx"}


def _metadata() -> Iterator[Attack]:
    """P05: yield metadata that would apply to the target of a link."""
    changed = {"mode": 0o7777, "owner": (1234, 1234), "mtime": 1, "pax": _ATTRIBUTES}
    for link, make in LINKS.items():
        yield Attack(
            "P05",
            f"a directory in the place of a {link} link",
            lambda to, make=make: [[*make(to), directory("link", **changed)]],  # type: ignore[misc, arg-type]
            refused=False,
        )
        yield Attack(
            "P05",
            f"a directory below a {link} link",
            lambda to, make=make: [[*make(to), directory("link/inner", **changed)]],  # type: ignore[misc, arg-type]
        )
        yield Attack(
            "P05",
            f"a directory in the place of a {link} link of the layer below",
            lambda to, make=make: [[*make(to)], [directory("link", **changed)]],  # type: ignore[misc, arg-type]
            refused=False,
        )
    yield Attack(
        "P05",
        "a link's own",
        lambda to: [[symlink("link", f"{to}/secret", owner=(1234, 1234), mtime=1, pax=_ATTRIBUTES)]],
        refused=False,
    )
    yield Attack(
        "P05",
        "a file in the place of a link",
        lambda to: [[symlink("f", f"{to}/secret"), file("f", b"gone", **changed)]],
        refused=False,
    )
    yield Attack(
        "P05",
        "a hard link to a link",
        lambda to: [[symlink("s", f"{to}/secret"), hard("h", "s"), hard("h", "s", **changed)]],
        refused=False,
    )


def _whiteouts() -> Iterator[Attack]:
    """P06: yield whiteouts with names that point out."""
    for name in (".wh...", ".wh..", ".wh.", "a/.wh.", ".wh./x", ".wh.a/b", "a/.wh..", "a/.wh..."):
        yield Attack("P06", name, lambda to, name=name: [[directory("a"), file("a/b")], [file(name)]])  # type: ignore[misc, arg-type]
    yield Attack("P06", "dotdot", lambda to: [[file(f"{UP}{to}/.wh.secret")]])
    yield Attack("P06", "dotdot, a new name", lambda to: [[file(f"{UP}{to}/.wh.new")]])
    yield Attack("P06", "opaque outside", lambda to: [[file(f"{UP}{to}/.wh..wh..opq")]])
    yield Attack("P06", "overlayfs's own mark", lambda to: [[file("a")], [device("a", 0, 0)]])
    yield Attack(
        "P06", "a hard link to a whiteout", lambda to: [[file("a")], [file(".wh.a"), hard("b", "a")]]
    )
    yield Attack("P06", "absolute", lambda to: [[file(f"{to}/.wh.secret")]], refused=False)


ATTACKS = {
    f"{one.case} {one.name}": one
    for make in (_names, _through, _roots, _hard_links, _metadata, _whiteouts)
    for one in make()
}


def of(*cases: str) -> list[str]:
    """Return the names of the attacks of some cases."""
    return [name for name, attack in ATTACKS.items() if attack.case in cases]


def wrong(engine: Engine, top: Path, *cases: str, first: bool = False) -> dict[str, str]:
    """Return the attacks of these cases with an unexpected outcome.

    first: the first that touches a canary is enough.
    """
    found: dict[str, str] = {}
    for at, name in enumerate(of(*cases)):
        attack, place = ATTACKS[name], top / f"{cases[0]}-{at}"
        place.mkdir(mode=0o755)
        canary = Canary(place / "canary")
        changed: list[str] = []
        layers = [tar(layer) for layer in attack.layers(str(canary.top))]
        try:
            image = Image.from_oci_layout(oci_layout(layers).write(place / "layout"), engine=engine)
        except ImageError:
            pass
        except Exception as error:  # noqa: BLE001  every error is reported
            found[name] = f"is refused as {type(error).__name__}: {error}"
        else:
            if ill := _ill(engine, image, attack):
                found[name] = ill
            changed = canary.check()
            image.remove(force=True)
        engine.sweep()
        if kept(engine):
            found[name] = f"leaves {kept(engine)}"
        if touched := {*changed, *canary.check()}:
            found[name] = f"touches {sorted(touched)}"
            if first:
                break
    return found


def _ill(engine: Engine, image: Image, attack: Attack) -> str:
    """Return the problems of an image that was accepted."""
    if attack.refused:
        return "is not refused"
    if damage := engine.fsck():
        return f"leaves the store damaged: {damage}"
    readable = _told(image)
    return f"shows the canary in {readable}" if readable else ""


def _told(image: Image) -> list[str]:
    """Return files of an image with the contents of the canary."""
    found = []
    for top in image.directories:
        for path in Path(top).rglob("*"):
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            if Canary.SECRET.encode() in path.read_bytes():
                found.append(str(path))
    return found


def hurt(*cases: str) -> list[str]:
    """Return the attacks of these cases that changed the canary, with the loaded extension."""
    with tempfile.TemporaryDirectory(prefix="pyc-hurt-") as top:
        os.chmod(top, 0o755)
        engine = Engine(f"{top}/store")
        try:
            found = wrong(engine, Path(top), *cases, first=True)
        finally:
            engine.close()
    return sorted(name for name, what in found.items() if what.startswith("touches"))
