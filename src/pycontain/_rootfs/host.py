"""The embedded default image: this machine's own /usr and the running interpreter, and no more of it.

A skeleton directory in the store holds the minimum of /etc, the links of a merged
/usr and the mount points; the machine's trees are shown read-only on top.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading

_VERSION = "1"
_TREES = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_DIRECTORIES = {
    "proc": 0o555,
    "sys": 0o555,
    "dev": 0o755,
    "tmp": 0o1777,
    "run": 0o755,
    "var/tmp": 0o1777,
    "var/lib": 0o755,
    "root": 0o755,
    "home": 0o755,
    "workspace": 0o777,
    "mnt": 0o755,
    "opt": 0o755,
    "srv": 0o755,
}
_COPIED = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "ssl/certs",
    "ssl/openssl.cnf",
    "localtime",
    "timezone",
    "protocols",
    "services",
    "mime.types",
    "debian_version",
    "os-release",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
)
_WRITTEN = {
    "passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        "user:x:1000:1000:user:/home:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    "shells": "/bin/sh\n/bin/bash\n",
}
_PRIVATE = {"/", "/root", "/home", "/var", "/srv", "/run", "/etc", "/tmp", "/opt", "/mnt", "/usr/local"}


def trees() -> list[tuple[str, str]]:
    """(directory of the host, place inside) of everything that is shown, outer before inner."""
    shown = [(path, path) for path in _TREES if os.path.isdir(path) and not os.path.islink(path)]
    places = {place for _, place in shown}
    homes = {os.path.realpath(path) for path in _homes()}
    for prefix in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix):
        real = os.path.realpath(prefix)
        if real in _PRIVATE or real in homes or not os.path.isdir(real):
            continue
        for place in (real, os.path.abspath(prefix)):
            if not any(place == other or place.startswith(other + "/") for other in places):
                shown.append((real, place))
                places.add(place)
    return shown


def _homes() -> list[str]:
    """Both places that are called home: an empty or foreign HOME does not expose the user's own."""
    import pwd

    try:
        return [os.path.expanduser("~"), pwd.getpwuid(os.getuid()).pw_dir]
    except KeyError:
        return [os.path.expanduser("~")]


def search_path() -> str:
    """PATH inside: the interpreter's own directory first."""
    return ":".join(
        dict.fromkeys(
            [
                os.path.join(sys.prefix, "bin"),
                os.path.join(sys.base_prefix, "bin"),
                "/usr/local/sbin",
                "/usr/local/bin",
                "/usr/sbin",
                "/usr/bin",
                "/sbin",
                "/bin",
            ]
        )
    )


def skeleton(parent: str) -> str:
    """The skeleton directory below `parent`, made once per machine state.  Raises OSError."""
    shown = trees()
    directory = os.path.join(parent, _key(shown))
    if os.path.isdir(directory):
        return directory
    os.makedirs(parent, mode=0o700, exist_ok=True)
    building = f"{directory}.{os.getpid()}-{threading.get_ident()}.new"
    shutil.rmtree(building, ignore_errors=True)
    _build(building, shown)
    try:
        os.rename(building, directory)
    except OSError:  # another process was faster with the same content
        shutil.rmtree(building)
        if not os.path.isdir(directory):
            raise
    return directory


def _key(shown: list[tuple[str, str]]) -> str:
    """What the skeleton depends on, hashed: the trees, and the files of /etc that were copied."""
    facts = [_VERSION, repr(shown)]
    for name in _COPIED:
        try:
            found = os.stat(f"/etc/{name}")
        except OSError:
            continue
        facts.append(f"{name} {found.st_mtime_ns} {found.st_size}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def _build(top: str, shown: list[tuple[str, str]]) -> None:
    os.mkdir(top, 0o755)
    for name, mode in _DIRECTORIES.items():
        path = os.path.join(top, name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
    for path in _TREES:
        if os.path.islink(path):
            os.symlink(os.readlink(path), os.path.join(top, path.lstrip("/")))
    for _, place in shown:
        os.makedirs(os.path.join(top, place.lstrip("/")), exist_ok=True)
    etc = os.path.join(top, "etc")
    os.mkdir(etc)
    for name in _COPIED:
        _copy(f"/etc/{name}", os.path.join(etc, name))
    for name, text in _WRITTEN.items():
        with open(os.path.join(etc, name), "w", encoding="ascii") as file:
            file.write(text)
    for directory, _, _ in os.walk(top):
        if os.path.relpath(directory, top) not in _DIRECTORIES:
            os.chmod(directory, 0o755)


def _copy(source: str, target: str) -> None:
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.basename(source) == "localtime":
            shutil.copyfile(source, target)
        elif os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.isdir(source):
            shutil.copytree(source, target, symlinks=True, ignore=_unreadable)
        else:
            shutil.copyfile(source, target)
    except FileNotFoundError:
        return


def _unreadable(directory: str, names: list[str]) -> set[str]:
    """A file that not everybody may read is nothing to hand to a guest."""
    hidden = set()
    for name in names:
        found = os.lstat(os.path.join(directory, name))
        if not found.st_mode & 0o004:
            hidden.add(name)
    return hidden
