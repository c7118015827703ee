"""Image on this host: layers of a root file system, and defaults for containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from attrs import evolve, field, frozen

if TYPE_CHECKING:
    from pycontain.oci import Descriptor, Digest, History, ImageConfig, Manifest

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@frozen(kw_only=True)
class LocalImage:
    """Read-only layers of a root file system on this host, and defaults for containers.

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

    name: str
    directories: tuple[str, ...]
    trees: tuple[tuple[str, str], ...] = ()
    env: Mapping[str, str] = field(factory=lambda: {"PATH": _PATH}, hash=False)
    user: str = ""
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(factory=dict, hash=False)
    stop_signal: int = 0
    sealed: tuple[str, ...] = ()
    manifest: Manifest | None = field(default=None, repr=False)
    size: int = field(default=0, eq=False)
    _config: ImageConfig | None = field(default=None, repr=False, eq=False)

    def _repr_html_(self) -> str:
        from pycontain._model.html import table

        rows = [("name", self.name), ("size", f"{self.size:,} bytes" if self.size else "")]
        command = [*self.entrypoint, *self.command]
        rows += [("command", str(command) if command else ""), ("user", self.user), ("workdir", self.workdir)]
        return table([row for row in rows if row[1]])

    @property
    def digest(self) -> Digest | None:
        """Digest of the manifest; None for a directory that is used in place."""
        return None if self.manifest is None else self.manifest.digest

    @property
    def base(self) -> Self:
        """Return the image without the layers that snapshots have added."""
        if not self.sealed:
            return self
        return evolve(self, directories=self.directories[len(self.sealed) :], sealed=())

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """Return the descriptors of the layers, the lowest first, as in the manifest."""
        return () if self.manifest is None else self.manifest.layers

    @property
    def config(self) -> ImageConfig:
        """Return the OCI image configuration; for a directory used in place, its defaults."""
        from pycontain.oci import ContainerConfig, ImageConfig, Platform

        if self._config is not None:
            return self._config
        container = ContainerConfig(
            user=self.user,
            env=tuple(f"{name}={value}" for name, value in self.env.items()),
            entrypoint=self.entrypoint,
            command=self.command,
            workdir=self.workdir,
            volumes=self.volumes,
            labels=dict(self.labels),
        )
        return ImageConfig(platform=Platform.host(), container=container)

    @property
    def history(self) -> tuple[History, ...]:
        """History of the image, as in its configuration."""
        return self.config.history
