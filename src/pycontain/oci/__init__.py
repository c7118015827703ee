"""Values of the OCI image and distribution specifications: what registries, archives and the store speak in.

Everything here is checked when it is made and frozen afterwards; nothing here touches files or networks.
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
