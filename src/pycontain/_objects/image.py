"""Images: what a container's root file system begins with."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen

from pycontain._rootfs import host
from pycontain.errors import ImageError, NotFound

if TYPE_CHECKING:
    from pycontain._engine import Engine

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _engine(engine: Engine | None) -> Engine:
    from pycontain._engine import default_engine

    return engine or default_engine()


@frozen(kw_only=True)
class Image:
    """Read-only layers and what to do with them by default.

    layers: directories of this host, the uppermost first.  trees: further directories of this
    host and the places where they are shown, read-only.  env, user, workdir, command: defaults of
    a container, as in the OCI image configuration.
    """

    name: str
    layers: tuple[str, ...]
    trees: tuple[tuple[str, str], ...] = ()
    env: Mapping[str, str] = field(factory=lambda: {"PATH": _PATH}, hash=False)
    user: str = ""
    workdir: str = "/"
    command: tuple[str, ...] = ()

    @classmethod
    def host(cls, *, engine: Engine | None = None) -> Image:
        """This machine's own programs and the running interpreter, and none of its data.

        /usr, /lib*, /bin and /sbin, the prefixes of the interpreter with its site-packages, and the
        minimum of /etc; never /home, /root, /var, /srv, /run.  All of it is read-only.
        """
        return _engine(engine).host_image()

    @classmethod
    def from_rootfs(
        cls, source: str | os.PathLike[str], *, copy: bool = False, engine: Engine | None = None
    ) -> Image:
        """A directory, used in place as a read-only layer, or a tar archive, unpacked into the store.

        copy: import the directory, so that later changes of it do not show.  Raises NotFound when
        there is nothing, ImageError when it is neither a directory nor a tar archive.
        """
        path = os.path.realpath(os.fspath(source))
        if not os.path.lexists(path):
            raise NotFound(f"no such image directory or archive: {os.fspath(source)}")
        if os.path.isdir(path):
            if copy:
                path = _imported(_engine(engine), path)
            return cls(name=os.path.basename(path) or "rootfs", layers=(path,))
        if not os.path.isfile(path):
            raise ImageError(f"neither a directory nor an archive: {path}")
        return cls(name=os.path.basename(path), layers=(_imported(_engine(engine), path),))


def _imported(engine: Engine, source: str) -> str:
    """The directory in the store that holds the content of `source`; archives are kept by their digest."""
    from pycontain._rootfs import archive

    imports = os.path.join(engine.roots.data, "imports")
    os.makedirs(imports, mode=0o700, exist_ok=True)
    if os.path.isdir(source):
        target = os.path.join(imports, os.urandom(12).hex())
    else:
        with open(source, "rb") as file:
            target = os.path.join(imports, hashlib.file_digest(file, "sha256").hexdigest())
        if os.path.isdir(target):
            return target
    building = f"{target}.{os.urandom(4).hex()}.new"
    os.mkdir(building, 0o755)
    try:
        if os.path.isdir(source):
            archive.copy_tree(source, building)
        else:
            with open(source, "rb") as file:
                archive.unpack(file, building)
        os.rename(building, target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        if os.path.isdir(target):
            return target
        raise
    return target


def host_image(store: str) -> Image:
    """The value of `Image.host()` for a store directory."""
    return Image(
        name="host",
        layers=(host.skeleton(os.path.join(store, "host")),),
        trees=tuple(host.trees()),
        env={"PATH": host.search_path(), "LANG": "C.UTF-8"},
    )
