"""Values of the OCI image and distribution specifications, used by registries, archives and the store.

Values are validated on construction and immutable. The package does no I/O.
"""

from pycontain.oci.config import ContainerConfig, Healthcheck, History, ImageConfig
from pycontain.oci.digest import Digest
from pycontain.oci.document import MediaType
from pycontain.oci.manifest import Descriptor, Index, Manifest, parse_manifest
from pycontain.oci.platform import Platform
from pycontain.oci.reference import Reference

__all__ = [
    "ContainerConfig",
    "Descriptor",
    "Digest",
    "Healthcheck",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "MediaType",
    "Platform",
    "Reference",
    "parse_manifest",
]
