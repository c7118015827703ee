"""Platforms, by which a manifest of an index is chosen (OCI image-index.md)."""

from __future__ import annotations

import os
from typing import Any

from attrs import frozen

from pycontain._model.sizes import shown
from pycontain.errors import ImageError
from pycontain.oci.document import Fields

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "armv5l": "arm",
    "armv6l": "arm",
    "armv7l": "arm",
    "armv8l": "arm",
    "i386": "386",
    "i586": "386",
    "i686": "386",
}
_VARIANTS = {
    "armhf": "v7",
    "armel": "v6",
    "armv5l": "v5",
    "armv6l": "v6",
    "armv7l": "v7",
    "armv8l": "v8",
    "aarch64": "v8",
}
_IMPLIED = {("arm64", "v8"): "", ("amd64", "v1"): "", ("arm", ""): "v7"}


@frozen
class Platform:
    """An operating system and processor, by the names that Go gives them.

    Attributes:
        os: Operating system.
        architecture: Processor architecture.
        variant: Variant of the architecture, such as `v7`.
        os_version: Version of the operating system (Windows images).
    """

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""
    os_version: str = ""

    @classmethod
    def host(cls) -> Platform:
        """Return the platform of this machine."""
        machine = os.uname().machine
        return cls("linux", _ARCHITECTURES.get(machine, machine), _VARIANTS.get(machine, "")).normal()

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse a platform such as 'linux/arm64', 'arm64', 'linux/arm/v7' or 'x86_64'.

        Raises:
            ImageError: The text is not a platform.
        """
        parts = text.lower().split("/") if isinstance(text, str) else [""]
        if not 1 <= len(parts) <= 3 or not all(
            part.isascii() and part.replace("_", "").replace("-", "").isalnum() for part in parts
        ):
            raise ImageError(f"not a platform: {shown(text)}", hint="write it like 'linux/arm64'")
        if len(parts) == 1:
            parts = ["linux", *parts]
        named = parts[1]
        variant = parts[2] if len(parts) == 3 else _VARIANTS.get(named, "")
        return cls(parts[0], _ARCHITECTURES.get(named, named), variant).normal()

    @classmethod
    def of(cls, fields: Fields) -> Platform:
        """Return the platform in a JSON object of an index or a configuration."""
        named = fields.text("architecture").lower()
        return cls(
            fields.text("os", "linux").lower(),
            _ARCHITECTURES.get(named, named),
            fields.text("variant").lower() or _VARIANTS.get(named, ""),
            fields.text("os.version"),
        ).normal()

    def normal(self) -> Platform:
        """Return it with the variant spelled as containerd does: arm64 is v8, arm is v7, amd64 is v1."""
        variant = f"v{self.variant}" if self.variant.isdecimal() else self.variant
        variant = _IMPLIED.get((self.architecture, variant), variant)
        return Platform(self.os, self.architecture, variant, self.os_version)

    def serves(self, wanted: Platform) -> bool:
        """Return whether an image of this platform runs where `wanted` is requested."""
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return False
        return self.variant == wanted.variant or (
            self.architecture in ("arm", "arm64", "amd64") and self.variant < wanted.variant
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the platform."""
        result = {"os": self.os, "architecture": self.architecture}
        if self.variant:
            result["variant"] = self.variant
        if self.os_version:
            result["os.version"] = self.os_version
        return result

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
