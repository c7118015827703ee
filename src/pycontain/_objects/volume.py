"""Volume: a directory that containers share and that outlives them."""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, TYPE_CHECKING

from pycontain._model.arguments import check_flag
from pycontain._model.labels import check_name, checked_labels
from pycontain._model.mounts import VolumeMount
from pycontain._model.sizes import parse_size
from pycontain._objects.image import engine_of
from pycontain.errors import Conflict, NotFound, UnsupportedError

if TYPE_CHECKING:
    from pycontain._objects.engine import Engine
    from pycontain._runtime.session import Session
    from pycontain._state.tables.volumes import VolumeRecord


class Volume:
    """A directory of the store that outlives containers and that several of them can mount at the same time.

    `volumes={'/data': Volume('db')}` mounts it.  Files have the same owners in all containers.  An empty
    volume is filled with the image's content at the path when its first container starts.  Data that a
    container has synced survives kills and power failures.

    Args:
        name: Name of a new or existing volume.  Without one, a new volume is created, which exists until the
            engine is closed or the volume's `with` block ends.
        size: Maximum size in bytes, or text such as '64M', above which writes fail with ENOSPC.  Needs an
            engine that runs as root; the volume is an ext4 file system on a loop device.
        labels: Labels of a new volume.
        engine: The engine to use; the default one of this process without it.

    Raises:
        ValueError: The name is malformed.
        LimitError: The size is malformed.
        Conflict: The volume exists with another size.
        UnsupportedError: The host cannot limit the size.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        size: int | str | None = None,
        labels: Mapping[str, str] | None = None,
        engine: Engine | None = None,
    ) -> None:
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._volumes import records

        if name is not None:
            check_name(name, "the name of a volume")
        wanted = None if size is None else parse_size(size)
        self._session = engine_of(engine)._session
        self._check_size(wanted)
        store = self._session.store
        owner = "" if name is not None else store.owner.name
        record = records.new(name or os.urandom(16).hex(), wanted, checked_labels(labels), owner)
        with translate_store_errors(store.roots.data):
            self._record = records.create(store, record)

    def _check_size(self, size: int | None) -> None:
        if size is not None and not self._session.features.privileged:
            raise UnsupportedError(
                "volumes of a given size in a rootless engine",
                hint="use Tmpfs(size), or leave the size out",
            )

    @classmethod
    def get(cls, name: str, *, engine: Engine | None = None) -> Volume:
        """Return an existing volume.

        Args:
            name: Name of the volume.
            engine: The engine to use; the default one of this process without it.

        Raises:
            NotFound: The volume does not exist.
        """
        from pycontain._volumes import records

        session = engine_of(engine)._session
        found = records.get(session.store, name)
        if found is None:
            raise NotFound(f"no volume {name!r}")
        return cls._of(found, session)

    @classmethod
    def list(cls, *, engine: Engine | None = None) -> builtins.list[Volume]:
        """Return all volumes of the store, sorted by name."""
        from pycontain._volumes import records

        session = engine_of(engine)._session
        return [cls._of(record, session) for record in records.every(session.store)]

    @classmethod
    def prune(cls, *, all: bool = False, engine: Engine | None = None) -> builtins.list[str]:
        """Remove volumes that no container uses.

        Args:
            all: Remove named volumes too.
            engine: The engine to use; the default one of this process without it.

        Returns:
            The names of the removed volumes.
        """
        gone = []
        for one in cls.list(engine=engine):
            if all or one._record.owner:
                with contextlib.suppress(Conflict, NotFound):
                    one.remove()
                    gone.append(one.name)
        return gone

    @classmethod
    def _of(cls, record: VolumeRecord, session: Session) -> Volume:
        new = cls.__new__(cls)
        new._session, new._record = session, record
        return new

    @property
    def name(self) -> str:
        """Name of the volume, generated for a volume without one."""
        return self._record.name

    @property
    def size(self) -> int | None:
        """Maximum size in bytes, or None if only the store's file system limits it."""
        return self._record.size

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels of the volume."""
        return dict(self._record.labels)

    @property
    def created(self) -> datetime:
        """Time of creation, in UTC."""
        return datetime.fromtimestamp(self._record.created, UTC)

    @property
    def containers(self) -> builtins.list[str]:
        """Ids of the containers of all processes that use the volume."""
        from pycontain._volumes import records

        return records.users(self._session.store, self.name)

    def inspect(self) -> dict[str, object]:
        """Return name, size, created, labels, anonymous, path and containers."""
        return {
            "name": self.name,
            "size": self.size,
            "created": self.created,
            "labels": self.labels,
            "anonymous": bool(self._record.owner),
            "path": self.mounted().path,
            "containers": self.containers,
        }

    def mounted(self, *, read_only: bool = False, noexec: bool = False) -> VolumeMount:
        """Return the volume with mount flags: `volumes={'/data': Volume('db').mounted(read_only=True)}`.

        Args:
            read_only: Writes in the container fail with EROFS.
            noexec: Programs cannot be executed from the volume.
        """
        from pycontain._volumes import records

        return VolumeMount(
            name=self.name,
            path=records.content_of(self._session.store, self._record),
            image=self.size is not None,
            read_only=check_flag("read_only", read_only),
            noexec=check_flag("noexec", noexec),
        )

    def remove(self) -> None:
        """Remove the volume and its content.

        Raises:
            Conflict: A container uses the volume.
            NotFound: The volume does not exist.
        """
        from pycontain._images.layers import discard
        from pycontain._volumes import records

        store = self._session.store
        records.remove(store, self.name, lambda name: discard(store, name))

    def backup(self, target: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the content as an uncompressed tar archive, with owners, times and extended attributes.

        Containers may write meanwhile: each file is archived as it is when it is read.

        Args:
            target: Path of the archive, or a binary file.

        Raises:
            PathError: The archive cannot be written.
            NotFound: The volume does not exist.
        """
        from pycontain._images.archives import replacing
        from pycontain._images.write import archive
        from pycontain._volumes import records

        store = self._session.store
        with self._root() as root, replacing(target) as file:
            for chunk in archive(store, root, first_id=records.first_id_of(store), exact=True):
                file.write(chunk)

    def restore(self, source: str | os.PathLike[str] | IO[bytes]) -> None:
        """Fill an empty volume from an archive that `backup` wrote, or from another tar archive.

        Args:
            source: Path of the archive, which may be compressed, or a binary file.

        Raises:
            Conflict: The volume is not empty, or a container uses it.
            ImageError: The archive is malformed; the entries before the fault are in the volume.
            PathError: The archive cannot be read.
            NotFound: The volume does not exist.
        """
        from pycontain._images.archives import opened_to_read
        from pycontain._images.extract import extract
        from pycontain._volumes import records

        store = self._session.store
        with self._root() as root, opened_to_read(source) as file:
            if records.users(store, self.name):
                raise Conflict(f"volume {self.name!r} is in use", hint="remove its containers first")
            if os.listdir(root):
                raise Conflict(f"volume {self.name!r} is not empty", hint="restore into a new volume")
            extract(store, root, iter(lambda: file.read(1 << 20), b""), first_id=records.first_id_of(store))
            records.used(store, self.name)

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        """Yield a descriptor of the volume's directory."""
        from pycontain._volumes import filesystem, records

        store = self._session.store
        if records.get(store, self.name) is None:
            raise NotFound(f"no volume {self.name!r}")
        path = records.content_of(store, self._record)
        root = filesystem.mount(path) if self.size is not None else -1
        fd = os.open(
            path if root < 0 else ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=None if root < 0 else root
        )
        try:
            yield fd
        finally:
            os.close(fd)
            if root >= 0:
                os.close(root)

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._record.owner:
            with contextlib.suppress(NotFound):
                self.remove()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Volume):
            return NotImplemented
        return (self.name, self._session.roots) == (other.name, other._session.roots)

    def __hash__(self) -> int:
        return hash((self.name, self._session.roots))

    def __repr__(self) -> str:
        return f"<Volume {self.name}>"
