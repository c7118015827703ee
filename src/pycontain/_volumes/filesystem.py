"""Volumes with a size: ext4 in an image file on a loop device (loop(4)), for root only.

The kernel detaches the device with its last mount. Containers that share a volume share one device, and so
one superblock.
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
"""Bytes; ext4 has no room for data in less."""
_GET_FREE, _CONFIGURE, _GET_STATUS = 0x4C82, 0x4C0A, 0x4C05
_INFO = struct.Struct("<5Q4I64s64s32s2Q")
_AUTOCLEAR = 4
_ATTEMPTS = 64
_SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"


def make(path: str, size: int) -> None:
    """Create an empty file system in a sparse file.

    Raises:
        LimitError: The size is too small.
        UnsupportedError: mkfs.ext4 is missing or failed.
        OSError: The file cannot be written.
    """
    if size < SMALLEST:
        raise LimitError(f"size of a volume must be at least {SMALLEST >> 20}M, got {size} bytes")
    tool = shutil.which("mkfs.ext4", path=":".join(filter(None, [os.environ.get("PATH"), _SBIN])))
    if tool is None:
        raise UnsupportedError("volumes with a size", hint="install e2fsprogs for mkfs.ext4")
    with open(path, "xb") as file:
        os.chmod(path, 0o600)
        file.truncate(size)
    # No blocks are reserved for root (-m 0), which means nothing inside a container.
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
    """Mount an image detached and return an fd of its root.

    Raises:
        UnsupportedError: The host has no free loop device.
        OSError: The mount failed.
    """
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
    """Yield a loop device of the image, which the kernel detaches when it is neither open nor mounted."""
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
        except OSError:  # detached meanwhile
            os.close(fd)
            continue
        if _same_device(info[0], wanted.st_dev) and info[1] == wanted.st_ino and info[8] & _AUTOCLEAR:
            return fd, f"/dev/{name}"
        os.close(fd)
    return None


def _same_device(encoded: int, device: int) -> bool:
    """Compare a device number with one of LOOP_GET_STATUS64, which the kernel encodes by new_encode_dev()."""
    major, minor = os.major(device), os.minor(device)
    return encoded in (device, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)


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
            except OSError:  # another process took the device
                os.close(fd)
                continue
            return fd, device
    finally:
        os.close(control)
    raise UnsupportedError(
        "volumes with a size (all loop devices are in use)", hint="detach unused ones (losetup -d)"
    )
