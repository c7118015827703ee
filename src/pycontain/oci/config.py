"""The image configuration (OCI config.md)."""

from __future__ import annotations

from typing import Any

from attrs import evolve, field, frozen

from pycontain._model.sizes import shown
from pycontain.errors import ImageError
from pycontain.oci.digest import Digest, chain_id
from pycontain.oci.document import CONFIG_MOST, Fields, compact, parse
from pycontain.oci.manifest import LAYERS_MOST
from pycontain.oci.platform import Platform

_HISTORY_MOST = 10_000


def _nanoseconds(seconds: float) -> int:
    """Convert seconds to nanoseconds, capped at Docker's int64: a float rounds the largest value up."""
    return min(round(seconds * 1e9), (1 << 63) - 1)


@frozen(kw_only=True)
class Healthcheck:
    """The health check of an image, as Docker defines it.

    Attributes:
        test: The command, with `CMD`, `CMD-SHELL` or `NONE` as its first element.
        interval: Seconds between checks; 0 is Docker's default, here and below.
        timeout: Seconds until a check counts as failed.
        start_period: Seconds after the start in which failures do not count.
        retries: Number of consecutive failures that make a container unhealthy.
    """

    test: tuple[str, ...] = ()
    interval: float = 0
    timeout: float = 0
    start_period: float = 0
    retries: int = 0

    @classmethod
    def of(cls, fields: Fields) -> Healthcheck:
        """Read a health check from a JSON object.

        Raises:
            ImageError: A field has another type.
        """
        return cls(
            test=fields.texts("Test"),
            interval=fields.integer("Interval") / 1e9,
            timeout=fields.integer("Timeout") / 1e9,
            start_period=fields.integer("StartPeriod") / 1e9,
            retries=fields.integer("Retries"),
        )


@frozen(kw_only=True)
class ContainerConfig:
    """Container defaults: the `config` object of an image configuration.

    Attributes:
        user: User and group, by name or number.
        env: Entries `NAME=value`.
        entrypoint: The program and its first arguments.
        command: Default arguments.
        workdir: Working directory.
        volumes: Paths of anonymous volumes.
        ports: Exposed ports, such as `80/tcp`.
        labels: Metadata.
        stop_signal: Name or number of the signal that stops the container.
        healthcheck: Health check, if the image defines one.
        shell: The shell for `RUN` in a build (Docker's extension).
        on_build: Triggers for builds that use the image (Docker's extension).
    """

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    workdir: str = ""
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    labels: dict[str, str] = field(factory=dict, hash=False)
    stop_signal: str = ""
    healthcheck: Healthcheck | None = None
    shell: tuple[str, ...] = ()
    on_build: tuple[str, ...] = ()

    @classmethod
    def of(cls, fields: Fields) -> ContainerConfig:
        """Read container defaults from a JSON object.

        Raises:
            ImageError: A field has another type, or its text has a NUL byte.
        """
        check = fields.inner("Healthcheck")
        result = cls(
            user=fields.text("User"),
            env=fields.texts("Env"),
            entrypoint=fields.texts("Entrypoint"),
            command=fields.texts("Cmd"),
            workdir=fields.text("WorkingDir"),
            volumes=fields.names("Volumes"),
            ports=fields.names("ExposedPorts"),
            labels=fields.mapping("Labels"),
            stop_signal=fields.text("StopSignal"),
            healthcheck=None if check is None else Healthcheck.of(check),
            shell=fields.texts("Shell"),
            on_build=fields.texts("OnBuild"),
        )
        for name in ("env", "entrypoint", "command"):
            for text in getattr(result, name):
                if "\0" in text:
                    raise fields.wrong(name, f"has a NUL byte: {shown(text)}")
        for text in (result.user, result.workdir, *result.volumes):
            if "\0" in text:
                raise ImageError(f"{fields.what}: a NUL byte in {shown(text)}")
        return result

    @property
    def environment(self) -> dict[str, str]:
        """`env` as a mapping; entries without a name or `=` are dropped, as Docker does."""
        pairs = (text.partition("=") for text in self.env)
        return {name: value for name, equals, value in pairs if name and equals}

    def document(self) -> dict[str, Any]:
        """Return the JSON object, without empty fields."""
        check = self.healthcheck
        full: dict[str, Any] = {
            "User": self.user,
            "Env": list(self.env),
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "WorkingDir": self.workdir,
            "Volumes": {path: {} for path in self.volumes},
            "ExposedPorts": {port: {} for port in self.ports},
            "Labels": self.labels,
            "StopSignal": self.stop_signal,
            "Shell": list(self.shell),
            "OnBuild": list(self.on_build),
            "Healthcheck": check
            and {
                "Test": list(check.test),
                "Interval": _nanoseconds(check.interval),
                "Timeout": _nanoseconds(check.timeout),
                "StartPeriod": _nanoseconds(check.start_period),
                "Retries": check.retries,
            },
        }
        return {name: value for name, value in full.items() if value}


@frozen(kw_only=True)
class History:
    """One entry of an image's history (OCI config.md, "history").

    Attributes:
        created: Time of creation (RFC 3339).
        created_by: The command that created the layer.
        author: Author of the layer.
        comment: Free text.
        empty_layer: The entry has no layer.
    """

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    @classmethod
    def of(cls, fields: Fields) -> History:
        """Read a history entry from a JSON object.

        Raises:
            ImageError: A field has another type.
        """
        return cls(
            created=fields.text("created"),
            created_by=fields.text("created_by"),
            author=fields.text("author"),
            comment=fields.text("comment"),
            empty_layer=fields.truth("empty_layer"),
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON object, without empty fields."""
        full: dict[str, Any] = {
            "created": self.created,
            "created_by": self.created_by,
            "author": self.author,
            "comment": self.comment,
            "empty_layer": self.empty_layer,
        }
        return {name: value for name, value in full.items() if value}


@frozen(kw_only=True)
class ImageConfig:
    """An image configuration: platform, layers, history and container defaults.

    Attributes:
        platform: Platform of the image.
        container: Defaults of its containers.
        diff_ids: Digests of the uncompressed layers, the lowest first.
        history: History entries, the oldest first.
        created: Time of creation (RFC 3339).
        author: Author of the image.
        raw: The original bytes, from which the image's digest is computed.
    """

    platform: Platform
    container: ContainerConfig = ContainerConfig()
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[History, ...] = field(default=(), repr=False)
    created: str = ""
    author: str = ""
    raw: bytes = field(default=b"", repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """Parse an image configuration.

        Raises:
            ImageError: The bytes are not a valid image configuration.
        """
        fields = parse(raw, "the image configuration", CONFIG_MOST)
        rootfs = fields.inner("rootfs")
        if rootfs is None or rootfs.text("type") != "layers":
            raise fields.wrong("rootfs", "is missing or its type is not 'layers'")
        diff_ids = rootfs.texts("diff_ids")
        if len(diff_ids) > LAYERS_MOST:
            raise rootfs.wrong("diff_ids", f"has more than {LAYERS_MOST} entries")
        container = fields.inner("config")
        return cls(
            platform=Platform.of(fields),
            container=ContainerConfig() if container is None else ContainerConfig.of(container),
            diff_ids=tuple(Digest(text) for text in diff_ids),
            history=fields.each("history", History.of, _HISTORY_MOST),
            created=fields.text("created"),
            author=fields.text("author"),
            raw=raw,
        )

    @property
    def chain_ids(self) -> tuple[Digest, ...]:
        """Return the chain id of each layer, the lowest first."""
        chain: list[Digest] = []
        for diff_id in self.diff_ids:
            chain.append(chain_id(chain[-1] if chain else None, diff_id))
        return tuple(chain)

    def written(self) -> ImageConfig:
        """Return a copy whose `raw` is serialized again, canonically."""
        document: dict[str, Any] = {
            **self.platform.document(),
            "config": self.container.document(),
            "rootfs": {"type": "layers", "diff_ids": list(self.diff_ids)},
        }
        if self.history:
            document["history"] = [one.document() for one in self.history]
        for name in ("created", "author"):
            if getattr(self, name):
                document[name] = getattr(self, name)
        return evolve(self, raw=compact(document))
