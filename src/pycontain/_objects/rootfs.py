"""Root file system of a container: paths, copies, changes and snapshots; a base class of `Container`."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

from pycontain._objects.lifecycle import Lifecycle

if TYPE_CHECKING:
    from pycontain._model.change import Change
    from pycontain._objects.container import Container
    from pycontain._objects.image import Image
    from pycontain._objects.path import ContainerPath
    from pycontain._objects.snapshot import Snapshot
    from pycontain.oci import ContainerConfig


class RootFilesystem(Lifecycle):
    """Methods of a container that read, copy and save its root file system."""

    def path(self, path: str, *, user: str | int | None = None) -> ContainerPath:
        """Return an absolute path inside, with pathlib's verbs.

        user: with whose rights its verbs act, the container's `user` unless given.  Raises ValueError for a
        relative path.
        """
        from pycontain._objects.path import ContainerPath

        return ContainerPath(self._whole, path, user)

    def copy_in(
        self,
        src: str | os.PathLike[str],
        dst: str | ContainerPath,
        *,
        owner: str | int | None = None,
        user: str | int | None = None,
    ) -> None:
        """Copy a file or tree of the host into the container; how-to/files.md.

        user: with whose rights, the container's `user` unless given.  owner: of the files, that user unless
        given; another one takes `user='root'`.  Raises PathError, StateError.
        """
        from pycontain._objects.copies import copy_in

        copy_in(self._whole, src, dst, owner, user)

    def copy_out(
        self,
        src: str | ContainerPath,
        dst: str | os.PathLike[str],
        *,
        max_bytes: int | str = "64G",
        max_entries: int = 2_000_000,
    ) -> None:
        """Copy a file or tree of the container to the host; how-to/files.md.  PathError, StateError."""
        from pycontain._objects.copy_out import copy_out

        copy_out(self._whole, src, dst, max_bytes, max_entries)

    def diff(self) -> list[Change]:
        """What the guest has added, changed and deleted below its root, in the order of paths.

        What is mounted does not count, nor do /etc/hosts, hostname and resolv.conf, which are the
        engine's.  Raises StateError when it does not run.
        """
        from pycontain._objects.commit import diff

        return diff(self._whole)

    def commit(
        self,
        reference: str | None = None,
        *,
        config: ContainerConfig | None = None,
        author: str = "",
        message: str = "",
    ) -> Image:
        """The image's layers and one of what `diff` tells, as an image of the store, named if asked.

        The processes are paused meanwhile, where this host can.  config: in place of the image's own.
        Raises StateError when it does not run, InvalidReference.
        """
        from pycontain._objects.commit import Made, commit

        return commit(self._whole, Made(reference, config, author, message))

    def snapshot(self) -> Snapshot:
        """The root file system as it is now, to begin others from, to return to, or to commit.

        Where no process of the container lives, what it has written is sealed in place and the container
        goes on above it, in a time that does not depend on the size.  Else it is copied, while everything
        is paused; `Snapshot.kind` says which.  What is mounted, tmpfs too, is no part of it.

        Raises StateError when it does not run, StartError with the step
        that failed.
        """
        from pycontain._objects.snapshots import snapshot

        return snapshot(self._whole)

    def fork(self, n: int = 1) -> list[Container]:
        """`n` started containers with the same options, that begin with what this one has written.

        Their names and ids are their own, their volumes the same; their commands begin anew.  Remove each,
        or use it as a context manager.  Raises as `snapshot` and `start` do; none is left then.
        """
        from pycontain._objects.snapshots import fork

        return fork(self._whole, n)

    def rollback(self, snapshot: Snapshot) -> Container:
        """Back to a snapshot of the same image: everything else in it ends, and it starts anew.

        Its command, if it has one, begins anew; tmpfs are empty; volumes are as they are.  Raises
        ValueError for a snapshot of another image, StartError, StateError.
        """
        from pycontain._objects.snapshots import rollback

        rollback(self._whole, snapshot)
        return self._whole

    def export(self, target: str | os.PathLike[str] | IO[bytes]) -> None:
        """The whole root file system as an uncompressed tar, without what is mounted in it.

        Raises StateError when it does not run, ImageError.
        """
        from pycontain._objects.commit import export

        export(self._whole, target)
