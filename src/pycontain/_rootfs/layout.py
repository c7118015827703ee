"""Operations (plan.h) that build a root file system, in order.  No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from pycontain._kernel.plan import Op, Source
from pycontain._kernel.protocol import MountAttr, OpFlag, OpKind
from pycontain._model.mounts import Tmpfs

_NONE: Mapping[str, str] = {}
_GUARDED = MountAttr.NOSUID | MountAttr.NODEV
SHM_SIZE = 64 << 20
"""Bytes of /dev/shm, the same default as docker's."""
RESOLV_CONF = b"nameserver 127.0.0.11\noptions ndots:0\n"
"""resolv.conf with the name service, which only answers in containers with a network."""


@frozen(kw_only=True)
class DirectorySpec:
    """Directory to create if it is missing, with its owner's ids inside."""

    path: str
    uid: int = 0
    gid: int = 0


@frozen(kw_only=True)
class MountSpec:
    """Requested mount.

    Attributes:
        target: Path inside.
        source: Index of a source of the plan; unused for a tmpfs.
        is_file: Whether the source is a file.
        tmpfs: Options of a tmpfs, or None.
        layered: Whether the source and the next one are layers of a read-only overlay. The overlay has
            its own inodes, so that locks, leases and watches are not shared with the host.
    """

    target: str
    source: int = -1
    is_file: bool = False
    tmpfs: Tmpfs | None = None
    layered: bool = False


def tmpfs_options(size: int | None, mode: int, inodes: int | None = None) -> bytes:
    """Return mount options of tmpfs(5)."""
    options = [f"mode={mode:o}"]
    if size is not None:
        options.append(f"size={size}")
    if inodes is not None:
        options.append(f"nr_inodes={inodes}")
    return ",".join(options).encode()


def _filesystem(kind: str, target: str, options: bytes, attributes: int, flags: int = 0) -> Op:
    data = kind.encode() + b"\0" + options
    return Op(OpKind.FILESYSTEM, target, data, flags, attributes=attributes)


def _files(hostname: str, hosts: Sequence[tuple[str, str]], resolv: bytes, own_name: bool) -> list[Op]:
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    if own_name:
        lines.append(f"127.0.1.1 {hostname}")
    lines += [f"{address} {name}" for name, address in hosts]
    return [
        Op(OpKind.FILE, "etc/hostname", hostname.encode() + b"\n", mode=0o644),
        Op(OpKind.FILE, "etc/hosts", "\n".join(lines).encode() + b"\n", mode=0o644),
        Op(OpKind.FILE, "etc/resolv.conf", resolv, mode=0o644),
    ]


def compose(
    *,
    layers: int,
    first_layer: int,
    trees: Sequence[MountSpec],
    mounts: Sequence[MountSpec],
    hostname: str,
    read_only: bool,
    scratch_size: int,
    masked: Sequence[str],
    readonly: Sequence[str],
    groups: Sequence[tuple[str, str]] = (),
    owned: Sequence[tuple[str, int]] = (),
    directories: Sequence[DirectorySpec] = (),
    resolv: bytes = RESOLV_CONF,
    own_name: bool = True,
    hosts: Sequence[tuple[str, str]] = (),
    shm_size: int | None = None,
    sysctls: Mapping[str, str] = _NONE,
) -> list[Op]:
    """Return all operations in order: overlay, kernel file systems, mounts, masks, read-only remount.

    Args:
        layers: Number of image layers.
        first_layer: Index of the uppermost layer among the sources.
        trees: Mounts of the image.
        mounts: Mounts of the container; outer ones are mounted before inner ones.
        hostname: Host name, for /etc/hostname and /etc/hosts.
        read_only: Whether the root is remounted read-only.
        scratch_size: Bytes of the tmpfs mounts.
        masked: Paths to mask.
        readonly: Paths to remount read-only.
        groups: Cgroups of the container below the launcher's root, and their paths below /sys.
        owned: Directories and modes, each after its parent, that are created in the upper directory if the
            uppermost layer has no id map.
        directories: Directories to create.
        resolv: Content of /etc/resolv.conf.
        own_name: Whether /etc/hosts has the host name; otherwise the name service resolves it.
        hosts: Further (name, address) lines of /etc/hosts.
        shm_size: Bytes of /dev/shm, or None for the default.
        sysctls: Settings below /proc/sys.
    """
    ops = [Op(OpKind.UPPER)]
    ops += [Op(OpKind.OWN_DIRECTORY, path, mode=mode) for path, mode in owned]
    ops += _files(hostname, hosts, resolv, own_name)
    ops.append(Op(OpKind.OVERLAY, source=first_layer, count=layers, attributes=_GUARDED))
    guarded = int(OpFlag.NOFOLLOW)
    everything = _GUARDED | MountAttr.NOEXEC
    ops.append(_filesystem("proc", "proc", b"", everything, guarded))
    shown = "".join(f"{group}\0{place}\0" for group, place in groups)
    ops.append(Op(OpKind.SYS, "sys", shown.encode(), flags=guarded))
    ops.append(Op(OpKind.DEV, "dev", flags=guarded))
    ops.append(
        _filesystem(
            "devpts",
            "dev/pts",
            b"newinstance,ptmxmode=0666,mode=620,max=64",
            int(MountAttr.NOSUID | MountAttr.NOEXEC),
            guarded,
        )
    )
    asked = {mount.target.strip("/") for mount in mounts}
    for target, options, attributes in _scratch(scratch_size, read_only, shm_size or SHM_SIZE):
        if target not in asked:
            ops.append(_filesystem("tmpfs", target, options, attributes, guarded))
    for mount in [*trees, *sorted(mounts, key=lambda mount: mount.target.count("/"))]:
        ops.append(_mount(mount))
    for made in directories:
        ops.append(Op(OpKind.DIRECTORY, made.path.lstrip("/"), attributes=made.gid << 32 | made.uid))
    # Before /proc/sys is read-only; no link of an image is on these paths.
    ops += [
        Op(OpKind.SYSCTL, f"proc/sys/{name.replace('.', '/')}", text.encode())
        for name, text in sysctls.items()
    ]
    ops += [Op(OpKind.MASK, path.lstrip("/")) for path in masked]
    ops += [Op(OpKind.READONLY, path.lstrip("/")) for path in readonly]
    if read_only:
        ops.append(Op(OpKind.SEAL))
    return ops


def _scratch(size: int, read_only: bool, shm_size: int) -> list[tuple[str, bytes, int]]:
    shown = [
        ("dev/shm", tmpfs_options(shm_size, 0o1777), int(_GUARDED | MountAttr.NOEXEC)),
        ("tmp", tmpfs_options(size, 0o1777), int(_GUARDED)),
    ]
    if read_only:
        shown.append(("run", tmpfs_options(size, 0o755), int(_GUARDED | MountAttr.NOEXEC)))
        shown.append(("workspace", tmpfs_options(size, 0o777), int(_GUARDED)))
    return shown


def _mount(mount: MountSpec) -> Op:
    # A link of an image must not redirect a mount into /dev; /dev/shm itself has none on its path.
    guarded = int(OpFlag.NOFOLLOW) if mount.target.strip("/") == "dev/shm" else 0
    if mount.tmpfs is not None:
        options = tmpfs_options(mount.tmpfs.size, mount.tmpfs.mode)
        attributes = int(_GUARDED | (MountAttr.NOEXEC if mount.tmpfs.noexec else 0))
        return _filesystem("tmpfs", mount.target, options, attributes, guarded)
    if mount.layered:
        attributes = int(_GUARDED | MountAttr.RDONLY)
        return Op(OpKind.OVERLAY, mount.target, source=mount.source, count=2, attributes=attributes)
    return Op(
        OpKind.MOUNT,
        mount.target,
        flags=guarded | (OpFlag.IS_FILE if mount.is_file else 0),
        source=mount.source,
    )


def layer_source(idmap: bool) -> Source:
    """Return the source of an image layer, which is mounted read-only."""
    flags = OpFlag.IDMAP | OpFlag.IDMAP_OPTIONAL if idmap else 0
    return Source(flags=flags, attributes=MountAttr.RDONLY | _GUARDED)
