"""Constructors of `Image` in detail: OCI layouts, directories, archives and this host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pycontain._objects.image import Image
from pycontain._rootfs import host
from pycontain.errors import Conflict, NotFound, PathError

if TYPE_CHECKING:
    from pycontain._objects.engine import Engine
    from pycontain.oci import Digest, Platform


def images_of_layout(engine: Engine, directory: str, name: str | None) -> list[Image]:
    """Import the images of an OCI image layout, or those with a name, and return them."""
    from pycontain._images.layout import Layout, full_names

    store, images = engine._session.store, []
    with Layout(directory, platform_of(None)) as layout:
        for found in layout.images(store):
            if name is not None and not found.is_called(name):
                continue
            names = full_names(found.names)
            record = layout.keep(store, found, names)
            images.append(Image._stored(engine, record.digest, _familiar(names, record.digest)))
    return images


def real_path(source: str) -> str:
    """Return a path without symbolic links.

    Raises:
        NotFound: The path does not exist.
        PathError: The path has a link that a guest may have created.
    """
    from pycontain._kernel import hostpath

    try:
        os.close(hostpath.open_path(source, os.O_PATH))
    except PathError:
        raise
    except OSError as error:
        raise NotFound(f"no such image directory or archive: {source}: {error.strerror}") from error
    # Later opens follow no link, so a guest that places one here cannot redirect them.
    return os.path.realpath(source)


def _familiar(names: Sequence[str], digest: Digest) -> str:
    from pycontain.oci import Reference

    return Reference.parse(names[0]).familiar if names else str(digest)


def platform_of(platform: str | Platform | None) -> Platform:
    from pycontain.oci import Platform

    if platform is None:
        return Platform.host()
    return platform if isinstance(platform, Platform) else Platform.parse(platform)


def single(found: Sequence[Image], name: str | None, source: object, engine: Engine | None) -> Image:
    if name is not None:
        from pycontain._images.lookup import tag_name

        found = [image for image in found if tag_name(name) in image.tags]
    if not found:
        raise NotFound(f"no image {name or ''} in {source}".replace("  ", " "))
    if len({image.digest for image in found}) > 1:
        raise Conflict(f"{source} has {len(found)} images", hint="pass the name of one, or use Image.load")
    return found[0]


def host_image(store: str, paths: Sequence[str] = ()) -> tuple[Image, int]:
    """Return the value of `Image.host()` for a store directory, and the lock of its skeleton directory."""
    shown = host.with_added(host.trees(), paths)
    directory, lock = host.skeleton(os.path.join(store, "host"), shown)
    image = Image(
        name="host",
        directories=(directory,),
        trees=tuple(shown),
        env={"PATH": host.search_path(), "LANG": "C.UTF-8"},
        workdir="/workspace",
    )
    return image, lock
