"""Images: what a container's root file system begins with."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import IO, TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen

from pycontain._images.image import LocalImage
from pycontain._model.arguments import check_flag, check_given, check_path
from pycontain._model.sizes import shown
from pycontain._rootfs import host
from pycontain.errors import Conflict, ImageError, NotFound, PathError

if TYPE_CHECKING:
    from pycontain._images.progress import ProgressOption
    from pycontain._objects.engine import Engine
    from pycontain.oci import Digest, Manifest, Platform

    Auth = tuple[str, str]


class Default:
    """The type of `Image.DEFAULT`."""

    def __repr__(self) -> str:
        return "Image.DEFAULT"


def engine_of(engine: Engine | None) -> Engine:
    """Return `engine`, or this process's default one for None.  Raises TypeError."""
    from pycontain._objects.engine import Engine, default_engine

    if engine is None:
        return default_engine()
    if not isinstance(engine, Engine):
        raise TypeError(f"engine must be an Engine or None, got {shown(engine)}")
    return engine


@frozen(kw_only=True)
class Image(LocalImage):
    """Read-only layers of a root file system, defaults for containers, and operations of the store.

    Images come from the class methods, such as `Image.pull` and `Image.get`; the fields are those of the
    OCI image configuration.

    Attributes:
        name: Name, for messages and listings.
        directories: Unpacked layers, the uppermost first.
        trees: Further directories of the host, each with the container path at which it is visible.
        env: Environment variables.
        user: User of commands; '' means root.
        workdir: Working directory of commands.
        entrypoint: First part of the command line.
        command: Rest of the command line.
        volumes: Container paths for which the image declares volumes.
        labels: Labels.
        stop_signal: Number of the signal that `Container.stop` sends; 0 means SIGTERM.
        sealed: The uppermost layers that snapshots have added.
        manifest: OCI manifest, or None for a directory that is used in place.
        size: Size of the compressed layers in bytes; 0 for a directory.
    """

    DEFAULT: ClassVar[Default] = Default()
    """As the command of a container: what the image itself says."""

    _engine: Engine | None = field(default=None, repr=False, eq=False)

    # ---- ways to an image ---------------------------------------------------------------------------------

    @classmethod
    def host(cls, *, paths: Iterable[str | os.PathLike[str]] = (), engine: Engine | None = None) -> Image:
        """Return this machine's own programs and the running interpreter, and none of its data.

        It has /usr, /lib*, /bin and /sbin, the prefixes of the interpreter with its site-packages, and of
        /etc the files that are as a package of the distribution shipped them; never /home, /root, /var,
        /srv, /run.  All of it is read-only.  Commands start in /workspace, which every user can write, as
        /home, the home of every user but root.

        Args:
            paths: More files and directories of the host, shown read-only at the same place, such as
                '/etc/myapp' or '/opt/tool'.
            engine: The engine to use; the default one without it.

        Raises:
            NotFound: A path does not exist.
            ValueError: A path is not absolute, or is all of `/`, `/etc` or another directory of the system.
        """
        return engine_of(engine)._host_image(host.added(paths))

    @classmethod
    def pull(
        cls,
        reference: str,
        platform: str | Platform | None = None,
        auth: Auth | None = None,
        progress: ProgressOption = None,
        *,
        insecure: bool = False,
        timeout: float | timedelta | None = None,
        retries: int | None = None,
        engine: Engine | None = None,
    ) -> Image:
        """Fetch an image from its registry; what the store has of it already is not fetched again.

        reference: as docker reads it: 'debian', 'ghcr.io/a/b:tag', 'localhost:5000/x@sha256:...'.
        platform: 'linux/arm64', this machine's without one.  auth: (user, password), else what docker
        and podman have kept, their credential helpers included.  progress: a function that is called
        with a `Progress`, True or False for a bar, None for one where standard error is a terminal.
        insecure: plain HTTP, for this registry only.  timeout: seconds for the whole pull, None for as long
        as it makes progress.  retries: how often a request that failed is made again, 4 by default; an
        unknown host name and a certificate that is not trusted fail at once.

        Raises PullError, AuthError, NotFound, DigestMismatch, ImageError; the store is as it was then.
        """
        from pycontain._images.progress import metering
        from pycontain._images.pull import Pull
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._registry.credentials import Credentials
        from pycontain._registry.endpoint import Patience
        from pycontain.oci import Reference

        check_flag("insecure", insecure)
        parsed = Reference.parse(reference)
        credentials = Credentials.of(auth)
        patience = Patience.within(timeout, retries)
        store = engine_of(engine)._session.store
        with translate_store_errors(store.roots.data), metering(parsed.familiar, progress) as meter:
            pull = Pull(
                store,
                parsed,
                None if platform is None else _platform(platform),
                auth=credentials,
                insecure=insecure,
                patience=patience,
                meter=meter,
            )
            record = pull.run()
        return cls._stored(engine_of(engine), record.digest, parsed.familiar)

    @classmethod
    def get(cls, name: str, *, engine: Engine | None = None) -> Image:
        """An image of the store, by reference, digest, id or the beginning of an id.

        Raises NotFound; Conflict when several ids begin so; ImageError when a layer of it is damaged.
        """
        from pycontain._images.lookup import check_there, find

        chosen = engine_of(engine)
        record, called = find(chosen._session.store, name)
        check_there(chosen._session.store, record)
        return cls._stored(chosen, record.digest, called)

    @classmethod
    def list(cls, *, engine: Engine | None = None) -> builtins.list[Image]:
        """The images of the store, the newest first; those that are damaged are left to `Engine.fsck`."""
        from pycontain._images.lookup import name_of

        chosen = engine_of(engine)
        found = []
        store = chosen._session.store
        for record in store.images():
            try:
                found.append(cls._stored(chosen, record.digest, name_of(store, record.digest)))
            except (ImageError, NotFound):
                continue
        return found

    @classmethod
    def load(
        cls, source: str | os.PathLike[str] | IO[bytes], *, engine: Engine | None = None
    ) -> builtins.list[Image]:
        """Every image of an archive: what `docker save`, `podman save`, skopeo and `save` write.

        Raises NotFound for no file, ImageError for no such archive, DigestMismatch.
        """
        from pycontain._images.archives import opened_to_read, unpacked
        from pycontain._images.store_errors import translate_store_errors

        if isinstance(source, str | os.PathLike):
            check_path("source", source)
        store = (chosen := engine_of(engine))._session.store
        with (
            translate_store_errors(store.roots.data),
            opened_to_read(source) as file,
            unpacked(store, file.read) as directory,
        ):
            return cls._from_layout(chosen, directory, None)

    @classmethod
    def from_archive(
        cls,
        source: str | os.PathLike[str] | IO[bytes],
        name: str | None = None,
        *,
        engine: Engine | None = None,
    ) -> Image:
        """The one image of an archive, or the one of that name.  Raises as `load` does, and Conflict."""
        check_given("name", name)
        return _single(cls.load(source, engine=engine), name, source, engine)

    @classmethod
    def from_oci_layout(
        cls, directory: str | os.PathLike[str], name: str | None = None, *, engine: Engine | None = None
    ) -> Image:
        """The one image of an OCI layout, or the one that its index calls so.  Raises as `from_archive`."""
        from pycontain._images.store_errors import translate_store_errors

        chosen = engine_of(engine)
        with translate_store_errors(chosen._session.roots.data):
            found = cls._from_layout(chosen, check_path("directory", directory), check_given("name", name))
        return _single(found, None, directory, engine)

    @classmethod
    def scratch(cls, *, engine: Engine | None = None) -> Image:
        """Nothing: an empty directory."""
        chosen = engine_of(engine)
        return cls(name="scratch", directories=(chosen._session.store.empty(),), engine=chosen)

    @classmethod
    def from_rootfs(
        cls,
        source: str | os.PathLike[str],
        *,
        copy: bool = False,
        tag: str | None = None,
        engine: Engine | None = None,
    ) -> Image:
        """A directory, used in place as a read-only layer, or a tar archive, unpacked into the store.

        copy: import the directory into the store, so that later changes of it do not show.  tag: a
        name for what is imported.  Raises NotFound when there is nothing, ImageError when it is neither a
        directory nor a tar archive.
        """
        from pycontain._images.imports import import_archive, import_tree
        from pycontain._images.store_errors import translate_store_errors

        check_flag("copy", copy)
        check_given("tag", tag)
        path = _real_path(check_path("source", source))
        name = os.path.basename(path) or "rootfs"
        if os.path.isdir(path) and not copy and tag is None:
            return cls(name=name, directories=(path,))
        if not os.path.isdir(path) and not os.path.isfile(path):
            raise ImageError(f"source must be a directory or a tar archive, got {path}")
        chosen = engine_of(engine)
        bring = import_tree if os.path.isdir(path) else import_archive
        with translate_store_errors(chosen._session.roots.data):
            record = bring(chosen._session.store, path, tag)
        return cls._stored(chosen, record.digest, tag or name)

    # ---- what it is ---------------------------------------------------------------------------------------

    @property
    def tags(self) -> tuple[str, ...]:
        """Every name that it has in the store."""
        if self.manifest is None:
            return ()
        return tuple(self._store_engine()._session.store.tags(self.manifest.digest))

    # ---- what can be done with it -------------------------------------------------------------------------

    def tag(self, name: str) -> Image:
        """Give it a name, even one that another image has.  Raises InvalidReference, NotFound."""
        from pycontain._images.lookup import tag_name
        from pycontain._images.store_errors import translate_store_errors

        manifest = self._kept()
        with translate_store_errors(self._store_engine()._session.roots.data):
            self._store_engine()._session.store.set_tag(tag_name(name), manifest.digest)
        return self._stored(self._store_engine(), manifest.digest, name)

    def remove(self, *, force: bool = False) -> None:
        """Take it out of the store: the name it was got by, and the image itself with its last name.

        Layers go when no other image has them and no container uses them.  force: all names at once.
        Raises Conflict while a container of this engine is of it, NotFound when it is gone.
        """
        from pycontain._images.lookup import remove
        from pycontain._images.store_errors import translate_store_errors

        manifest, engine = self._kept(), self._store_engine()
        for container in engine._session.leases.holders(self):
            raise Conflict(
                f"image {self.name} is in use by container {container.name}",
                hint="remove the container first",
            )
        with translate_store_errors(engine._session.roots.data):
            remove(engine._session.store, manifest.digest, self.name, force=force)
        engine.sweep()

    def save(
        self, target: str | os.PathLike[str] | IO[bytes], format: Literal["oci", "docker"] = "oci"
    ) -> None:
        """Write an archive that docker, podman, skopeo and `load` read; the same bytes for the same image.

        'oci' is an OCI layout with docker's manifest.json beside it, 'docker' the latter alone.
        Raises PathError when the file cannot be written, NotFound, ImageError.
        """
        from pycontain._images.archives import replacing, save

        manifest = self._kept()
        if isinstance(target, str | os.PathLike):
            check_path("target", target)
        if format not in ("oci", "docker"):
            raise ValueError(f"format must be 'oci' or 'docker', got {format!r}")
        with replacing(target) as file:
            save(self._store_engine()._session.store, [(manifest.digest, self.tags)], file, format)

    def push(
        self,
        reference: str | None = None,
        auth: Auth | None = None,
        progress: ProgressOption = None,
        *,
        insecure: bool = False,
        timeout: float | timedelta | None = None,
        retries: int | None = None,
    ) -> Digest:
        """Send it to a registry, under its own name or another; the digest of its manifest there.

        What the registry has already is not sent; what another repository there is known to have is
        mounted from it.  timeout, retries: as for `pull`.  Raises PushError, AuthError.
        """
        from pycontain._images.progress import metering
        from pycontain._images.push import Push
        from pycontain._registry.credentials import Credentials
        from pycontain._registry.endpoint import Patience
        from pycontain.oci import Reference

        check_flag("insecure", insecure)
        manifest = self._kept()
        parsed = Reference.parse(self.name if reference is None else reference)
        credentials = Credentials.of(auth)
        patience = Patience.within(timeout, retries)
        with metering(parsed.familiar, progress) as meter:
            push = Push(
                self._store_engine()._session.store,
                manifest.digest,
                parsed,
                auth=credentials,
                insecure=insecure,
                patience=patience,
                meter=meter,
            )
            return push.run()

    # ---- inside -------------------------------------------------------------------------------------------

    def _store_engine(self) -> Engine:
        return engine_of(self._engine)

    def _kept(self) -> Manifest:
        if self.manifest is None:
            raise ImageError(
                f"image {self.name} is not in the store",
                hint="import it by Image.from_rootfs(directory, copy=True)",
            )
        return self.manifest

    @classmethod
    def _from_layout(cls, engine: Engine, directory: str, name: str | None) -> builtins.list[Image]:
        from pycontain._images.layout import Layout, full_names

        store, images = engine._session.store, []
        with Layout(directory, _platform(None)) as layout:
            for found in layout.images(store):
                if name is not None and not found.is_called(name):
                    continue
                names = full_names(found.names)
                record = layout.keep(store, found, names)
                images.append(cls._stored(engine, record.digest, _familiar(names, record.digest)))
        return images

    @classmethod
    def _stored(cls, engine: Engine, digest: Digest, name: str) -> Image:
        """The value for an image of the store.  Raises ImageError where its configuration cannot be meant."""
        from pycontain._images.defaults import defaults_of, directories_of

        store = engine._session.store
        manifest = store.manifest(digest)
        config = store.config(manifest.config.digest)
        record = store.record(digest)
        return cls(
            name=name,
            directories=directories_of(store, config),
            manifest=manifest,
            size=record.size if record is not None else 0,
            config=config,
            engine=engine,
            **defaults_of(config),
        )


def _real_path(source: str) -> str:
    """Return the path without links.  Raises NotFound; PathError for a link that a guest may have made."""
    from pycontain._kernel import hostpath

    try:
        os.close(hostpath.open_path(source, os.O_PATH))
    except PathError:
        raise
    except OSError as error:
        raise NotFound(f"no such image directory or archive: {source}: {error.strerror}") from error
    # From now on it is opened without following any link, whichever a guest puts there.
    return os.path.realpath(source)


def _familiar(names: Sequence[str], digest: Digest) -> str:
    from pycontain.oci import Reference

    return Reference.parse(names[0]).familiar if names else str(digest)


def _platform(platform: str | Platform | None) -> Platform:
    from pycontain.oci import Platform

    if platform is None:
        return Platform.host()
    return platform if isinstance(platform, Platform) else Platform.parse(platform)


def _single(found: Sequence[Image], name: str | None, source: object, engine: Engine | None) -> Image:
    if name is not None:
        from pycontain._images.lookup import tag_name

        found = [image for image in found if tag_name(name) in image.tags]
    if not found:
        raise NotFound(f"no image {name or ''} in {source}".replace("  ", " "))
    if len({image.digest for image in found}) > 1:
        raise Conflict(f"{source} has {len(found)} images", hint="pass the name of one, or use Image.load")
    return found[0]


def host_image(store: str, paths: Sequence[str] = ()) -> tuple[Image, int]:
    """Return the value of `Image.host()` for a store directory, and the lock of its skeleton."""
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
