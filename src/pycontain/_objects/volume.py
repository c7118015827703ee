"""Volumes: what containers share and leave behind."""

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
    from pycontain._volumes.records import Record


class Volume:
    """A directory of the store that outlives containers and that several may have at once.

    name: of a volume that is made now, or that there is; without one it is a new volume, which lasts as
    long as this engine, or as the `with` that it is used in.  size: bytes, or text such as '64M', beyond
    which writing fails with ENOSPC; as root, upon a loop device with ext4.  labels: kept with a new one.

    `volumes={'/data': Volume('db')}` mounts it, in as many containers as wanted: owners inside are the
    same in each.  A new volume begins with what the image of its first container has at
    the place.  What a container has synced survives kills and losses of power.

    Raises ValueError for a name that is none, LimitError for such a size, Conflict when the volume is there
    with another size, UnsupportedError where no size can be held.
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
        """A volume that there is.  Raises NotFound."""
        from pycontain._volumes import records

        session = engine_of(engine)._session
        found = records.get(session.store, name)
        if found is None:
            raise NotFound(f"no volume {name!r}")
        return cls._of(found, session)

    @classmethod
    def list(cls, *, engine: Engine | None = None) -> builtins.list[Volume]:
        """Every volume of the store, by name."""
        from pycontain._volumes import records

        session = engine_of(engine)._session
        return [cls._of(record, session) for record in records.every(session.store)]

    @classmethod
    def prune(cls, *, all: bool = False, engine: Engine | None = None) -> builtins.list[str]:
        """Remove volumes that no container has: those without a name, or all; the names of what is gone."""
        gone = []
        for one in cls.list(engine=engine):
            if all or one._record.owner:
                with contextlib.suppress(Conflict, NotFound):
                    one.remove()
                    gone.append(one.name)
        return gone

    @classmethod
    def _of(cls, record: Record, session: Session) -> Volume:
        new = cls.__new__(cls)
        new._session, new._record = session, record
        return new

    @property
    def name(self) -> str:
        """Its name, made up where none was given."""
        return self._record.name

    @property
    def size(self) -> int | None:
        """Bytes that it was made for; None for as many as the store's file system has."""
        return self._record.size

    @property
    def labels(self) -> Mapping[str, str]:
        """What it was labelled with."""
        return dict(self._record.labels)

    @property
    def created(self) -> datetime:
        """When it was made, in UTC."""
        return datetime.fromtimestamp(self._record.created, UTC)

    @property
    def containers(self) -> builtins.list[str]:
        """The ids of the containers that have it, of every process."""
        from pycontain._volumes import records

        return records.users(self._session.store, self.name)

    def inspect(self) -> dict[str, object]:
        """What is known of it: name, size, created, labels, anonymous, path, containers."""
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
        """Return the volume with mount flags: `volumes={'/data': Volume('db').mounted(read_only=True)}`."""
        from pycontain._volumes import records

        return VolumeMount(
            name=self.name,
            path=records.content_of(self._session.store, self._record),
            image=self.size is not None,
            read_only=check_flag("read_only", read_only),
            noexec=check_flag("noexec", noexec),
        )

    def remove(self) -> None:
        """Remove it and all in it.  Raises Conflict while a container has it, NotFound when it is gone."""
        from pycontain._images.layers import discard
        from pycontain._volumes import records

        store = self._session.store
        records.remove(store, self.name, lambda name: discard(store, name))

    def backup(self, target: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write all that is in it as an uncompressed tar, with owners, times and attributes.

        Containers may go on writing: each file is as it was when it was read.  Raises PathError, NotFound.
        """
        from pycontain._images.archives import replacing
        from pycontain._images.write import archive
        from pycontain._volumes import records

        store = self._session.store
        with self._root() as root, replacing(target) as file:
            for chunk in archive(store, root, first_id=records.first_id_of(store), exact=True):
                file.write(chunk)

    def restore(self, source: str | os.PathLike[str] | IO[bytes]) -> None:
        """Fill an empty volume with what `backup` wrote, or another tar archive, compressed or not.

        Raises Conflict for a volume that has something already or that a container has, ImageError for
        what is no archive, which leaves what came before the fault; PathError.
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
        """An fd of its directory."""
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
