"""Resolution of container options: image, command, mounts and volumes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from pycontain._model.arguments import check_flag, check_given, check_mapping, check_path
from pycontain._model.mounts import Tmpfs, VolumeMount
from pycontain._model.sizes import shown
from pycontain._objects.image import Default, Image
from pycontain._objects.snapshot import Snapshot
from pycontain._objects.volume import Volume
from pycontain._runtime import spec as specs
from pycontain._security.policy import Security
from pycontain.errors import Args, NotFound

if TYPE_CHECKING:
    from pycontain._objects.engine import Engine

Mounts: TypeAlias = "Mapping[str, Volume | specs.Mount | str | os.PathLike[str]]"
"""Container path to its source; a path stands for `Bind(path)`."""


_RLIMITS = "{'nofile': (1024, 4096)}"


def check_values(**options: object) -> None:
    """Check options of `Container` that are stored as they are.

    Raises:
        ValueError: A value is empty text.
        TypeError: A flag is not a bool, or another value has the wrong type.
    """
    for name, value in options.items():
        if name in ("read_only", "init"):
            check_flag(name, value)
        elif name == "rlimits":
            check_mapping(name, value, _RLIMITS)
        elif name == "security":
            if not isinstance(value, Security):
                raise TypeError(f"security must be a Security such as Security.SANDBOX, got {shown(value)}")
        else:
            check_given(name, value)


def image_of(engine: Engine, image: Image | Snapshot | str | None) -> Image:
    """Return the image of a container, pulling it if the store does not have it.

    Raises:
        TypeError: The value is not an image, a snapshot or a name.
        PullError: The image cannot be pulled.
    """
    if image is None:
        return engine._host_image()
    if isinstance(image, Snapshot):
        return image.image
    if isinstance(image, str):
        try:
            return Image.get(image, engine=engine)
        except NotFound:
            return Image.pull(image, engine=engine)
    if not isinstance(image, Image):
        raise TypeError(f"image must be an Image, a Snapshot or a name, got {shown(image)}")
    return image


def mounts_of(engine: Engine, volumes: Mounts | None, mounts: Mounts | None) -> specs.Mounts:
    """Return the mounts of `volumes` and `mounts`.

    Raises:
        ValueError: Both have the same path, or a volume belongs to another store.
        TypeError: An option or a source has the wrong type.
    """
    for name, option in (("volumes", volumes), ("mounts", mounts)):
        if option is not None and not isinstance(option, Mapping):
            raise TypeError(f"{name} must map container paths to sources, got {shown(option)}{_ours(option)}")
    given = {**(volumes or {}), **(mounts or {})}
    if len(given) < len(volumes or {}) + len(mounts or {}):
        raise ValueError("volumes and mounts must not name the same container path")
    return {place: _mounted(engine, place, what) for place, what in given.items()}


def _mounted(engine: Engine, place: str, what: object) -> specs.Mount | str:
    if isinstance(what, Volume):
        if what._session.roots != engine._session.roots:
            raise ValueError(f"volume {what.name!r} belongs to another store, {what._session.roots.data}")
        what = what.mounted()
    if isinstance(what, specs.Mount):
        return what
    if not isinstance(what, str | os.PathLike):
        hint = _ours(what, place)
        raise TypeError(
            f"the source at {place} must be a Volume, Bind, Tmpfs or path, got {shown(what)}{hint}"
        )
    return check_path(f"the source at {place}", what)


def _ours(given: object, place: str = "") -> str:
    """Return a hint that shows mounts in the syntax of docker-py in that of this package."""
    first = next(iter(given), None) if isinstance(given, list | tuple | set) else None
    if isinstance(first, str) and first.count(":") in (1, 2):
        source, target, *mode = first.split(":")
        read_only = "ro" in ",".join(mode).split(",")
    elif isinstance(given, Mapping) and isinstance(given.get("bind"), str):
        source, target, read_only = place, given["bind"], given.get("mode") == "ro"
    else:
        return ""
    what = "Bind" if source.startswith(("/", ".", "~")) else "Volume"
    value = f"{what}({source!r}{', read_only=True' * read_only * (what == 'Bind')})"
    return f" (hint: write volumes={{{target!r}: {value}}})"


def volume_names(points: Mapping[str, specs.Mount]) -> list[str]:
    """Return the names of the volumes among mounts."""
    return [what.name for what in points.values() if isinstance(what, VolumeMount)]


def whole_command(
    image: Image, command: Args | Default | None, entrypoint: Args | None = None
) -> tuple[str, ...] | None:
    """Return the command line, which is the entrypoint followed by the command, as in docker.

    Args:
        image: The image, with its default entrypoint and command.
        command: The command, or None; a container without command and entrypoint idles.
        entrypoint: Entrypoint in place of the image's entrypoint and command; an empty sequence for none.

    Raises:
        ValueError: The image has no command, but it is asked for.
    """
    if entrypoint is None:
        first, default = image.entrypoint, image.command
    else:
        empty = not isinstance(entrypoint, str | bytes | os.PathLike) and not list(entrypoint)
        first, default = () if empty else specs.command(entrypoint) or (), ()
    if command is None and not (entrypoint is not None and first):
        return None
    own = default if isinstance(command, Default) else specs.command(command)
    whole = (*first, *(own or ()))
    if not whole:
        raise ValueError(f"image {image.name} has no command (hint: pass one)")
    return whole


def empty_volumes(image: Image, taken: Mapping[str, object]) -> list[str]:
    """Return the declared volumes of an image for paths at which it has no content."""
    from pycontain._images.defaults import is_empty_place

    return [
        place
        for place in image.volumes
        if specs.is_free(place, taken) and is_empty_place(image.directories, place)
    ]


def declared_volumes(
    engine: Engine, image: Image, taken: Mapping[str, specs.Mount]
) -> tuple[dict[str, specs.Mount], list[Volume]]:
    """Return mounts for declared volumes under a read-only root, and the volumes created for them."""
    mounts: dict[str, specs.Mount] = {}
    made: list[Volume] = []
    empty = empty_volumes(image, taken)
    for place in image.volumes:
        if place in empty:
            mounts[place] = Tmpfs()
        elif specs.is_free(place, taken):
            made.append(Volume(engine=engine))
            mounts[place] = made[-1].mounted()
    return mounts, made


def check_layer(path: str) -> None:
    """Check that the directory of a layer exists.

    Raises:
        NotFound: It does not.
    """
    if not os.path.isdir(path):
        raise NotFound(f"layer directory {path} of the image does not exist")
