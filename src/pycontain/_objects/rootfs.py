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
        """Return a path in the container, with the methods of pathlib.

        Args:
            path: An absolute path.
            user: User whose rights its methods have; the container's by default.

        Raises:
            ValueError: The path is relative.
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
        """Copy a file or directory of the host into the container; see the guide on files.

        Args:
            src: Path on the host; with '/.' at its end, the content of a directory.
            dst: Path in the container.
            owner: Owner of the copy; `user` by default.  Another one needs `user='root'`.
            user: User whose rights are used; the container's by default.

        Raises:
            PathError: A path cannot be read or written.
            StateError: The container is not running.
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
        """Copy a file or directory of the container to the host; see the guide on files.

        Args:
            src: Path in the container; with '/.' at its end, the content of a directory.
            dst: Path on the host.
            max_bytes: Maximum size of the copy in bytes, or text such as '1G'.
            max_entries: Maximum number of files and directories.

        Raises:
            PathError: A path cannot be read or written, or a maximum is exceeded.
            StateError: The container is not running.
        """
        from pycontain._objects.copy_out import copy_out

        copy_out(self._whole, src, dst, max_bytes, max_entries)

    def diff(self) -> list[Change]:
        """Return what the container has added, changed and deleted in its root file system, sorted by path.

        Mounts are not compared, nor are /etc/hosts, /etc/hostname and /etc/resolv.conf, which the engine
        writes.

        Raises:
            StateError: The container is not running.
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
        """Add an image to the store: the container's image and one layer with the changes that `diff` lists.

        The processes are paused meanwhile if the host supports it.

        Args:
            reference: Name of the image, or None for no name.
            config: Configuration of the image, in place of that of the container's image.
            author: Author, for the history of the image.
            message: Comment, for the history of the image.

        Raises:
            StateError: The container is not running.
            InvalidReference: The name is malformed.
        """
        from pycontain._objects.commit import ImageMetadata, commit

        return commit(self._whole, ImageMetadata(reference, config, author, message))

    def snapshot(self) -> Snapshot:
        """Save the root file system, to start containers from it, to return to it, or to commit it.

        If no process runs in the container, its written files become a layer in place and the container
        continues above it, in a time that does not depend on their size.  Otherwise they are copied while all
        processes are paused.  `Snapshot.kind` says which.  Mounts, tmpfs included, are not part of a
        snapshot.

        Raises:
            StateError: The container is not running.
            StartError: A step failed; the container is unchanged.
        """
        from pycontain._objects.snapshots import snapshot

        return snapshot(self._whole)

    def fork(self, n: int = 1) -> list[Container]:
        """Start containers with the same options and a copy of this container's root file system.

        They have names and ids of their own, share its volumes, and start its command again.  The caller
        removes each, or uses it as a context manager.

        Args:
            n: Number of containers.

        Raises:
            StateError: The container is not running.
            StartError: A step failed; none of the containers is left.
        """
        from pycontain._objects.snapshots import fork

        return fork(self._whole, n)

    def rollback(self, snapshot: Snapshot) -> Container:
        """Return the root file system to a snapshot, end all processes, and start the container again.

        Its command, if it has one, starts again; tmpfs mounts are empty afterwards, volumes are unchanged.

        Args:
            snapshot: A snapshot of a container of the same image.

        Raises:
            ValueError: The snapshot is of another image.
            StateError: The container is removed.
            StartError: The container cannot be started.
        """
        from pycontain._objects.snapshots import rollback

        rollback(self._whole, snapshot)
        return self._whole

    def export(self, target: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the root file system without its mounts as an uncompressed tar archive.

        Args:
            target: Path of the archive, or a binary file.

        Raises:
            StateError: The container is not running.
            ImageError: The archive cannot be written.
        """
        from pycontain._objects.commit import export

        export(self._whole, target)
