"""Inconsistent OCI layouts, with the expected outcome of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from pycontain import Engine, Image, ImageError
from tests.security.conftest import kept
from tests.support.images import Layout, file, tar

LAYERS = [tar([file("a", b"1" * 600)]), tar([file("b", b"2" * 600)])]


def sound() -> Layout:
    layout = Layout()
    layout.image(LAYERS)
    return layout


def load(engine: Engine, layout: Layout) -> list[Image]:
    return Image.load(layout.archive(), engine=engine)


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def part_of(layout: Layout, kind: str) -> str:
    """Return the digest of a part."""
    manifest = json.loads(layout.blobs[layout.manifests[0]["digest"]])
    found: dict[str, str] = {
        "manifest": layout.manifests[0]["digest"],
        "config": manifest["config"]["digest"],
        "first layer": manifest["layers"][0]["digest"],
        "last layer": manifest["layers"][-1]["digest"],
    }
    return found[kind]


PARTS = ("manifest", "config", "first layer", "last layer")


def nothing(engine: Engine) -> bool:
    """Return whether the store has no image, no tag, and no file that a sweep keeps."""
    engine.sweep()
    return not engine.images and not engine._session.store.tags() and not kept(engine)


def not_refused(engine: Engine, layouts: Iterable[tuple[str, Layout]], match: str = "") -> list[str]:
    """Return names of layouts that do not fail with ImageError or leave something."""
    found = []
    for name, layout in layouts:
        try:
            load(engine, layout)
        except ImageError as error:
            if not re.search(match, str(error)):
                found.append(f"{name}: {error}")
        else:
            found.append(name)
        if not nothing(engine):
            found.append(f"{name} leaves something")
    return found
