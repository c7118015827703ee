"""A file system of a given size, as an image in a file: ext4 upon a loop device (loop(4)), as root.

The device goes with its last mount; containers that share a volume share one, and one superblock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator

from pycontain._kernel import native
from pycontain._state.locks import lock_within
from pycontain._state.owner import STORE_BLOCK
from pycontain.errors import LimitError, UnsupportedError

SMALLEST = 2 << 20
"""Bytes below which ext4 holds nothing."""
_GET_FREE, _CONFIGURE, _GET_STATUS = 0x4C82, 0x4C0A, 0x4C05
_INFO = struct.Struct("<5Q4I64s64s32s2Q")
_AUTOCLEAR = 4
_ATTEMPTS = 64
_SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"


def make(path: str, size: int) -> None:
    """An empty file system in a sparse file.  Raises UnsupportedError, LimitError, OSError."""
    if size < SMALLEST:
        raise LimitError(f"size of a volume must be at least {SMALLEST >> 20}M, got {size} bytes")
    tool = shutil.which("mkfs.ext4", path=":".join(filter(None, [os.environ.get("PATH"), _SBIN])))
    if tool is None:
        raise UnsupportedError("volumes with a size", hint="install e2fsprogs for mkfs.ext4")
    with open(path, "xb") as file:
        os.chmod(path, 0o600)
        file.truncate(size)
    # Nothing is kept for root, who is nobody special here.
    command = [
        tool,
        "-q",
        "-F",
        "-m",
        "0",
        "-E",
        f"root_owner={STORE_BLOCK}:{STORE_BLOCK},lazy_itable_init=1",
        path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": _SBIN})
    if done.returncode:
        os.unlink(path)
        raise UnsupportedError(f"a volume of {size} bytes (mkfs.ext4: {done.stderr.strip()[:200]})")
    root = mount(path)
    try:
        os.rmdir("lost+found", dir_fd=root)
    finally:
        os.close(root)


def mount(path: str) -> int:
    """A detached mount of the image: an fd of its root.  Raises UnsupportedError, OSError."""
    home = os.path.dirname(path)
    lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock_within(lock, fcntl.LOCK_EX, home)
        with _device(path) as device:
            return native.checked(native.lib.pcx_mount_device(b"ext4", os.fsencode(device)), path)
    finally:
        os.close(lock)


@contextlib.contextmanager
def _device(path: str) -> Iterator[str]:
    """A loop device of the image, which lasts as long as somebody has it open or mounted."""
    image = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fd, device = _existing(image) or _attached(image)
        try:
            yield device
        finally:
            os.close(fd)
    finally:
        os.close(image)


def _existing(image: int) -> tuple[int, str] | None:
    wanted = os.fstat(image)
    for name in os.listdir("/sys/block"):
        if not name.startswith("loop") or not os.path.exists(f"/sys/block/{name}/loop/backing_file"):
            continue
        try:
            fd = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            info = _INFO.unpack(fcntl.ioctl(fd, _GET_STATUS, bytes(_INFO.size)))
        except OSError:  # it has gone meanwhile
            os.close(fd)
            continue
        if _same_device(info[0], wanted.st_dev) and info[1] == wanted.st_ino and info[8] & _AUTOCLEAR:
            return fd, f"/dev/{name}"
        os.close(fd)
    return None


def _same_device(told: int, device: int) -> bool:
    """LOOP_GET_STATUS64 has device numbers as the kernel's new_encode_dev() has them."""
    major, minor = os.major(device), os.minor(device)
    return told in (device, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)


def _attached(image: int) -> tuple[int, str]:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            f"volumes with a size (/dev/loop-control: {error.strerror})",
            hint="load the loop module (sudo modprobe loop)",
        ) from error
    try:
        for _ in range(_ATTEMPTS):
            device = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, b"pycontain", b"", b"", 0, 0)
            try:
                fcntl.ioctl(fd, _CONFIGURE, struct.pack("<II", image, 0) + info + bytes(64))
            except OSError:  # another was faster
                os.close(fd)
                continue
            return fd, device
    finally:
        os.close(control)
    raise UnsupportedError(
        "volumes with a size (all loop devices are in use)", hint="detach unused ones (losetup -d)"
    )
