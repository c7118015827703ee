"""What a container's options come to, for the image that it is of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from pycontain._model.mounts import VolumeMount
from pycontain._objects.image import Default, Image
from pycontain._objects.snapshot import Snapshot
from pycontain._objects.volume import Volume
from pycontain._runtime import spec as specs
from pycontain.errors import Args, NotFound

if TYPE_CHECKING:
    from pycontain._engine import Engine

Mounts: TypeAlias = "Mapping[str, Volume | specs.Mount | str | os.PathLike[str]]"
"""Place inside to what stands there; a path alone is `Bind(path)`."""


def image_of(engine: Engine, image: Image | Snapshot | str | None) -> Image:
    """The image that is meant: pulled where the store has none of the name.  Raises TypeError, PullError."""
    if image is None:
        return engine.host_image()
    if isinstance(image, Snapshot):
        return image.image
    if isinstance(image, str):
        try:
            return Image.get(image, engine=engine)
        except NotFound:
            return Image.pull(image, engine=engine)
    if not isinstance(image, Image):
        raise TypeError(f"image is an Image or a Snapshot, not {image!r}")
    return image


def mounts_of(engine: Engine, volumes: Mounts | None, mounts: Mounts | None) -> specs.Mounts:
    """Both together, with volumes as they are mounted.

    Raises ValueError for one place named in both, or a volume of another store.
    """
    given = {**(volumes or {}), **(mounts or {})}
    if len(given) < len(volumes or {}) + len(mounts or {}):
        raise ValueError("volumes and mounts name the same place")
    return {place: _mounted(engine, what) for place, what in given.items()}


def _mounted(engine: Engine, what: Volume | specs.Mount | str | os.PathLike[str]) -> specs.Mount | str:
    if isinstance(what, Volume):
        if what._engine.roots != engine.roots:
            raise ValueError(f"the volume {what.name!r} is of another store: {what._engine.roots.data}")
        what = what.mounted()
    return what if isinstance(what, specs.Mount) else os.fspath(what)


def volume_names(points: Mapping[str, specs.Mount]) -> list[str]:
    """The volumes among what is mounted."""
    return [what.name for what in points.values() if isinstance(what, VolumeMount)]


def whole_command(image: Image, command: Args | Default | None) -> tuple[str, ...] | None:
    """What runs: the image's entrypoint before what was asked for, as docker has it."""
    if command is None:
        return None
    own = image.command if isinstance(command, Default) else specs.command(command)
    whole = (*image.entrypoint, *(own or ()))
    if not whole:
        raise ValueError(f"the image {image.name} has no command of its own")
    return whole


def empty_volumes(image: Image, taken: Mapping[str, object]) -> list[str]:
    """Places that the image declares as volumes and has nothing at: what it has there is not covered."""
    from pycontain._images.defaults import is_empty_place

    return [
        place
        for place in image.volumes
        if specs.is_free(place, taken) and is_empty_place(image.directories, place)
    ]


def check_layer(path: str) -> None:
    """Raise NotFound for a directory that is none any more."""
    if not os.path.isdir(path):
        raise NotFound(f"the image's layer is no directory any more: {path}")
