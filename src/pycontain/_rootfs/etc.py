"""The part of this machine's /etc that the default image carries.

A package's configuration file is carried as long as it is byte for byte the one that the distribution
published, by dpkg's own record of checksums: it can hold no secret of this machine.  Files that are generated
are named one by one.  A file that an administrator wrote or changed is never carried.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

GENERATED = (
    "alternatives",
    "debian_version",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "os-release",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
    "xml/catalog",
)
"""Files that the tools of packages generate and programs read; absent ones are passed over."""

REFUSED = frozenset(
    "cron.d cron.daily cron.hourly cron.monthly cron.weekly crontab default docker group gshadow hostname "
    "hosts init.d machine-id modprobe.d netplan network NetworkManager nsswitch.conf pam.d passwd polkit-1 "
    "ppp rc0.d rc1.d rc2.d rc3.d rc4.d rc5.d rc6.d rcS.d resolv.conf shadow shells ssh sudoers sudoers.d "
    "systemd udev wpa_supplicant".split()
)
"""Names below /etc that belong to accounts, logins and services, or that the engine writes itself."""

_STATUS = "/var/lib/dpkg/status"
_UCF = "/var/lib/ucf/hashfile"
_CONFFILE = re.compile(r"^ (/etc/\S+) ([0-9a-f]{32})$", re.MULTILINE)
"""A line below "Conffiles:" of a package; lines with more words are of files that no package has any more."""
_UCF_LINE = re.compile(r"^([0-9a-f]{32})  (/etc/\S+)$", re.MULTILINE)
_FILE_MOST, _ENTRIES_MOST = 8 << 20, 50_000


@frozen
class Entry:
    """A file or link to carry: its path below /etc, and a link's target."""

    path: str
    target: str | None = None


def facts() -> list[str]:
    """Return the state of the files that decide the choice; an engine reads it each time it starts."""
    found = []
    for path in (_STATUS, _UCF, *(f"/etc/{name}" for name in GENERATED)):
        try:
            seen = os.stat(path)
        except OSError:
            continue
        found.append(f"{path} {seen.st_mtime_ns} {seen.st_size}")
    return found


def published() -> dict[str, str]:
    """Return path to checksum of each configuration file below /etc as packages shipped it."""
    sums: dict[str, str] = {}
    for path, sum_ in _CONFFILE.findall(_text(_STATUS)):
        sums[path] = sum_
    for sum_, path in _UCF_LINE.findall(_text(_UCF)):
        sums[path] = sum_
    return sums


def carried(
    shown: Iterable[str], etc: str = "/etc", sums: Mapping[str, str] | None = None
) -> Iterator[Entry]:
    """Yield the files and links to carry, in no order.

    Args:
        shown: Directories of the host that the image shows; links into them are carried.
        etc: The directory to read.
        sums: Path below /etc to the checksum of the published file; read from dpkg by default.
    """
    known = published() if sums is None else sums
    chosen = {path for path, sum_ in _candidates(known) if _is_published(f"{etc}/{path}", sum_)}
    yield from (Entry(path) for path in chosen)
    tops = tuple(f"{one.rstrip('/')}/" for one in shown)
    for path in _links(etc):
        real = os.path.realpath(f"{etc}/{path}")
        below = os.path.relpath(real, os.path.realpath(etc))
        if real.startswith(tops) or below in chosen or any(one.startswith(f"{below}/") for one in chosen):
            yield Entry(path, os.readlink(f"{etc}/{path}"))


def _candidates(sums: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for path, sum_ in sums.items():
        below = path.removeprefix("/etc/")
        if ".." not in below.split("/") and below.split("/")[0] not in REFUSED:
            yield below, sum_


def _is_published(path: str, sum_: str) -> bool:
    """Return whether this is the file that the package shipped, and every user may read it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with open(fd, "rb") as file:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or not seen.st_mode & stat.S_IROTH or seen.st_size > _FILE_MOST:
            return False
        return hashlib.md5(file.read(), usedforsecurity=False).hexdigest() == sum_


def _links(etc: str) -> Iterator[str]:
    """Yield the links below a directory; those of generated directories come with these."""
    left = _ENTRIES_MOST
    waiting = [""]
    while waiting and left > 0:
        above = waiting.pop()
        with contextlib.suppress(OSError), os.scandir(f"{etc}/{above}") as entries:
            for entry in entries:
                path = f"{above}{entry.name}"
                left -= 1
                if path in REFUSED or path in GENERATED:
                    continue
                if entry.is_symlink():
                    yield path
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{path}/")


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
