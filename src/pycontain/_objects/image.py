"""Image: a read-only root file system and defaults for containers."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import IO, TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen

from pycontain._images.image import LocalImage
from pycontain._model.arguments import check_flag, check_given, check_path
from pycontain._model.sizes import shown
from pycontain._rootfs import host
from pycontain.errors import Conflict, ImageError, NotFound

if TYPE_CHECKING:
    from pycontain._images.progress import ProgressOption
    from pycontain._objects.engine import Engine
    from pycontain.oci import Digest, Manifest, Platform

    Auth = tuple[str, str]


class Default:
    """Type of `Image.DEFAULT`."""

    def __repr__(self) -> str:
        return "Image.DEFAULT"


def engine_of(engine: Engine | None) -> Engine:
    """Return `engine`, or the default engine of this process for None.

    Raises:
        TypeError: The value is not an engine.
    """
    from pycontain._objects.engine import Engine, default_engine

    if engine is None:
        return default_engine()
    if not isinstance(engine, Engine):
        raise TypeError(f"engine must be an Engine or None, got {shown(engine)}")
    return engine


@frozen(kw_only=True)
class Image(LocalImage):
    """Read-only layers of a root file system, defaults for containers, and operations of the store.

    Images come from the class methods, such as `Image.pull` and `Image.get`.

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
    """Placeholder for the image's own command, as the `command` of a container."""

    _engine: Engine | None = field(default=None, repr=False, eq=False)

    # ---- constructors -------------------------------------------------------------------------------------

    @classmethod
    def host(cls, *, paths: Iterable[str | os.PathLike[str]] = (), engine: Engine | None = None) -> Image:
        """Return an image of this machine's programs and the running Python interpreter, without the host's
        data.

        The image contains /usr, /lib*, /bin and /sbin, the prefixes of the interpreter with its
        site-packages, and those files of /etc that are unchanged since a package installed them, but not
        /home, /root, /var, /srv and /run.  All of it is read-only.  Commands start in /workspace.  All users
        can write to /workspace and /home, and /home is the home directory of all users except root.

        Args:
            paths: More files and directories of the host, visible read-only at the same path, such as
                '/etc/myapp' or '/opt/tool'.
            engine: The engine to use; the default one of this process without it.

        Raises:
            NotFound: A path does not exist.
            ValueError: A path is relative, or is `/`, `/etc` or another directory of the system as a whole.
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
        """Fetch an image from its registry; content that the store has already is not fetched again.

        Args:
            reference: Name as in docker: 'debian', 'ghcr.io/a/b:tag', 'localhost:5000/x@sha256:...'.
            platform: Platform such as 'linux/arm64'; that of this machine by default.
            auth: User name and password; by default those that docker or podman have stored, also by
                credential helpers.
            progress: A function that is called with a `Progress`; True or False for a progress bar or none;
                None for a progress bar if standard error is a terminal.
            insecure: Use plain HTTP for this registry.
            timeout: Seconds for the whole pull; None for no limit while data arrives.
            retries: Number of times that a failed request is repeated, 4 by default.  An unknown host name
                and an untrusted certificate fail at once.
            engine: The engine to use; the default one of this process without it.

        Raises:
            PullError: The registry cannot be reached or does not answer correctly; the store is unchanged.
            AuthError: The registry refused the credentials.
            NotFound: The registry does not have the image, or not for the platform.
            DigestMismatch: Content does not match its digest.
            ImageError: The image is malformed.
        """
        from pycontain._images.progress import metering
        from pycontain._images.pull import Pull
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._objects.image_sources import platform_of
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
                None if platform is None else platform_of(platform),
                auth=credentials,
                insecure=insecure,
                patience=patience,
                meter=meter,
            )
            record = pull.run()
        return cls._stored(engine_of(engine), record.digest, parsed.familiar)

    @classmethod
    def get(cls, name: str, *, engine: Engine | None = None) -> Image:
        """Return an image of the store.

        Args:
            name: A reference, a digest, an id, or the beginning of an id.
            engine: The engine to use; the default one of this process without it.

        Raises:
            NotFound: The store does not have the image.
            Conflict: Several ids begin with the name.
            ImageError: A layer of the image is damaged.
        """
        from pycontain._images.lookup import check_there, find

        chosen = engine_of(engine)
        record, called = find(chosen._session.store, name)
        check_there(chosen._session.store, record)
        return cls._stored(chosen, record.digest, called)

    @classmethod
    def list(cls, *, engine: Engine | None = None) -> builtins.list[Image]:
        """Return the undamaged images of the store, the newest first.  `Engine.fsck` reports damaged ones."""
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
        """Import all images of an archive by `docker save`, `podman save`, skopeo or `Image.save`.

        Args:
            source: Path of the archive, or a binary file.
            engine: The engine to use; the default one of this process without it.

        Raises:
            NotFound: The file does not exist.
            ImageError: The file is not such an archive.
            DigestMismatch: Content does not match its digest.
        """
        from pycontain._images.archives import opened_to_read, unpacked
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._objects.image_sources import images_of_layout

        if isinstance(source, str | os.PathLike):
            check_path("source", source)
        store = (chosen := engine_of(engine))._session.store
        with (
            translate_store_errors(store.roots.data),
            opened_to_read(source) as file,
            unpacked(store, file.read) as directory,
        ):
            return images_of_layout(chosen, directory, None)

    @classmethod
    def from_archive(
        cls,
        source: str | os.PathLike[str] | IO[bytes],
        name: str | None = None,
        *,
        engine: Engine | None = None,
    ) -> Image:
        """Import the only image of an archive, or the one with a name.

        Args:
            source: Path of the archive, or a binary file.
            name: Name of the image, if the archive has several.
            engine: The engine to use; the default one of this process without it.

        Raises:
            Conflict: The archive has several images and `name` is None.
            NotFound: The file or the image does not exist.
            ImageError: The file is not such an archive.
            DigestMismatch: Content does not match its digest.
        """
        from pycontain._objects.image_sources import single

        check_given("name", name)
        return single(cls.load(source, engine=engine), name, source, engine)

    @classmethod
    def from_oci_layout(
        cls, directory: str | os.PathLike[str], name: str | None = None, *, engine: Engine | None = None
    ) -> Image:
        """Import the only image of an OCI image layout, or the one with a name in its index.

        Args:
            directory: Path of the layout.
            name: Name of the image, if the layout has several.
            engine: The engine to use; the default one of this process without it.

        Raises:
            Conflict: The layout has several images and `name` is None.
            NotFound: The directory or the image does not exist.
            ImageError: The directory is not an OCI image layout.
            DigestMismatch: Content does not match its digest.
        """
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._objects.image_sources import images_of_layout, single

        chosen = engine_of(engine)
        with translate_store_errors(chosen._session.roots.data):
            found = images_of_layout(chosen, check_path("directory", directory), check_given("name", name))
        return single(found, None, directory, engine)

    @classmethod
    def scratch(cls, *, engine: Engine | None = None) -> Image:
        """Return an image with an empty root file system."""
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
        """Return an image of a root file system in a directory or a tar archive.

        A directory is used in place as a read-only layer unless `copy` or `tag` is given; an archive is
        unpacked into the store.

        Args:
            source: Path of the directory or archive.
            copy: Import the directory into the store, so that later changes of it have no effect.
            tag: Name of the imported image.
            engine: The engine to use; the default one of this process without it.

        Raises:
            NotFound: The path does not exist.
            ImageError: The path is neither a directory nor a tar archive.
        """
        from pycontain._images.imports import import_archive, import_tree
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._objects.image_sources import real_path

        check_flag("copy", copy)
        check_given("tag", tag)
        path = real_path(check_path("source", source))
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

    # ---- properties ---------------------------------------------------------------------------------------

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the image in the store."""
        if self.manifest is None:
            return ()
        return tuple(self._store_engine()._session.store.tags(self.manifest.digest))

    # ---- operations ---------------------------------------------------------------------------------------

    def tag(self, name: str) -> Image:
        """Add a name to the image; it is taken from another image that has it.

        Args:
            name: The name.

        Returns:
            The image under its new name.

        Raises:
            InvalidReference: The name is malformed.
            ImageError: The image is not in the store.
            NotFound: The image has been removed.
        """
        from pycontain._images.lookup import tag_name
        from pycontain._images.store_errors import translate_store_errors

        manifest = self._kept()
        with translate_store_errors(self._store_engine()._session.roots.data):
            self._store_engine()._session.store.set_tag(tag_name(name), manifest.digest)
        return self._stored(self._store_engine(), manifest.digest, name)

    def remove(self, *, force: bool = False) -> None:
        """Remove a name from the image, and the image with its last name.

        The name is the one by which the image was obtained.  Layers are deleted when no other image has them
        and no container uses them.

        Args:
            force: Remove all names.

        Raises:
            Conflict: A container of this engine uses the image.
            NotFound: The image has been removed.
            ImageError: The image is not in the store.
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
        """Write an archive for `docker load`, `podman load`, skopeo and `Image.load`.

        The archive of an image always has the same bytes.

        Args:
            target: Path of the archive, or a binary file.
            format: 'oci' for an OCI image layout that includes docker's manifest.json, 'docker' for the
                latter only.

        Raises:
            PathError: The file cannot be written.
            NotFound: The image has been removed.
            ImageError: The image is not in the store, or is damaged.
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
        """Send the image to a registry; content that the registry has already is not sent again.

        Args:
            reference: Name at the registry; the name of the image by default.
            auth: As in `pull`.
            progress: As in `pull`.
            insecure: Use plain HTTP for this registry.
            timeout: Seconds for the whole push; None for no limit while data is accepted.
            retries: As in `pull`.

        Returns:
            The digest of the manifest at the registry.

        Raises:
            PushError: The registry cannot be reached or refused the image.
            AuthError: The registry refused the credentials.
            ImageError: The image is not in the store.
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

    # ---- internal -----------------------------------------------------------------------------------------

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
    def _stored(cls, engine: Engine, digest: Digest, name: str) -> Image:
        """Return the value of an image in the store.

        Raises:
            ImageError: The configuration of the image is malformed.
        """
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
