"""The cffi builder: compiles the static programs, then describes the extension that carries them."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import cffi

NATIVE = Path(__file__).resolve().parent.parent if "__file__" in globals() else Path("src/_native").resolve()
ROOT = NATIVE.parent.parent
OUT = ROOT / "build" / "native"

WARNINGS = (
    "-Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith "
    "-Wvla -Wundef -Wformat=2 -Wswitch-default -Wcast-align -Wno-missing-field-initializers"
).split()
PROGRAM_FLAGS = (
    "-std=gnu11 -O2 -ffreestanding -fno-builtin -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -fvisibility=hidden -fPIE -static-pie -nostdlib "
    "-Wl,--no-dynamic-linker -Wl,-z,now -Wl,-z,noexecstack -Wl,-z,text -Wl,--build-id=none -s"
).split()
SHARED = ["start.c", "wire.c", "record.c", "fds.c", "check.c", "caps.c", "seccomp.c", "exec.c"]
PROGRAMS = {"launcher": [*SHARED, "landlock.c", "mountapi.c"], "agent": SHARED}
HEADERS = ["extension.h", "plan.h", "files.h", "layer.h", "network.h", "relay.h"]
SYSTEM_HEADERS = ["linux/mount.h", "sys/stat.h"]
"""The declarations that ffi.cdef repeats; the compiler compares the two."""
ROOMS = {"launcher": "helper", "agent": "agent"}
"""The directory of each program; the launcher is the helper's first role."""


def program_command(name: str, output: Path) -> list[str]:
    """The compiler's command line for one static program."""
    compiler = shlex.split(os.environ.get("PYCONTAIN_CC") or os.environ.get("CC") or "cc")
    extra = shlex.split(os.environ.get("PYCONTAIN_CFLAGS", ""))
    sources = sorted(str(path) for path in (NATIVE / ROOMS[name]).rglob("*.c"))
    shared = [str(NATIVE / "shared" / source) for source in PROGRAMS[name]]
    include = f"-I{NATIVE / 'include'}"
    return [*compiler, *WARNINGS, *PROGRAM_FLAGS, *extra, include, "-o", str(output), *sources, *shared]


def build_programs() -> dict[str, Path]:
    """Compile launcher and agent; their paths."""
    OUT.mkdir(parents=True, exist_ok=True)
    built = {}
    for name in PROGRAMS:
        built[name] = OUT / name
        subprocess.run(program_command(name, built[name]), check=True)
    return built


def describe() -> cffi.FFI:
    """The extension module `pycontain._kernel._ffi`."""
    programs = build_programs()
    builder = cffi.FFI()
    builder.cdef((NATIVE / "ext" / "ffi.cdef").read_text())
    own = [*sorted((NATIVE / "ext").glob("*.c")), NATIVE / "shared" / "check.c"]
    builder.set_source(
        "pycontain._kernel._ffi",
        "".join(f'#include "{name}"\n' for name in [*HEADERS, *SYSTEM_HEADERS]),
        sources=[os.path.relpath(path, ROOT) for path in own],
        include_dirs=[str(NATIVE / "ext"), str(NATIVE / "include")],
        define_macros=[(f"PCX_{name.upper()}_PATH", f'"{path}"') for name, path in programs.items()],
        extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden"],
        extra_link_args=["-Wl,-z,now", "-Wl,-z,relro", "-Wl,-z,noexecstack"],
    )
    return builder


ffi = describe()

if __name__ == "__main__":
    ffi.compile(verbose=True)
