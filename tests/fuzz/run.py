"""Fuzz the C code that reads untrusted bytes: build a target with the best available engine and run it.

Targets: decoders (check.c: plans and commands), layers (the reader, unpacker and packer of archives).
Engines: libFuzzer where clang has its runtime, else gcc (or clang) with AddressSanitizer and
standalone.c.  Exit status: 0 clean, 1 a finding, 2 the harness is broken, 77 no compiler with
AddressSanitizer.

PYC_CHECK_C: another check.c to fuzz.  PYC_NATIVE: another src/_native, whose layers are fuzzed.
PYC_FUZZ_CLANG, PYC_FUZZ_GCC: the compilers, with options.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "src" / "_native"
SKIPPED = 77

_FLAGS = (
    "-std=gnu11 -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all "
    "-Wall -Wextra -Werror -Wno-missing-field-initializers"
).split()
_SANITIZERS = "address,undefined"
_OPTIONS = {
    "ASAN_OPTIONS": "handle_abort=2:handle_sigill=2:detect_leaks=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
}
_FOUND = (1, 77, 99)
"""Exit statuses of sanitizers and libFuzzer after a finding; a replayed one leaves no new file."""
_COVERAGE = "-fsanitize-coverage=trace-pc"
"""Coverage flags for the target only: the driver must not be instrumented."""
_SMALLER = {
    "PC_TAR_BUFFER (1u << 20)": "PC_TAR_BUFFER 1600u",
    "PC_TAR_EXTENDED_MOST (1u << 20)": "PC_TAR_EXTENDED_MOST 8192u",
    "PC_TAR_REGIONS_MOST 65536u": "PC_TAR_REGIONS_MOST 64u",
    "NOTES_STEP (1u << 20)": "NOTES_STEP 4096u",
}
"""Bounds of the layers' reader, such that small inputs come to them."""
_KERNEL = (
    ("raw6 (word nr", "kernel6 (word nr"),
    ("#define raw5(", "word raw6 (word nr, word a, word b, word c, word d, word e, word f);\n#define raw5("),
)
"""The replacement of raw.h that routes system calls to layers_kernel.c instead of the kernel."""
_OWN_MEMORY = [f"-D{name}=own_{name}" for name in ("memcpy", "memset", "memcmp")]
"""wire.c brings what the sanitizer has to see itself."""


class NoCompiler(Exception):
    """No compiler here links AddressSanitizer."""


@dataclass(frozen=True)
class Target:
    """A fuzz target: the harness and the sources that it links, each with its compiler options."""

    name: str
    mutations: tuple[str, ...]
    files: Callable[[Path], Iterable[tuple[Path, list[str]]]]

    @property
    def corpus(self) -> Path:
        """Return the directory of small valid inputs."""
        return HERE / "corpus" / self.name


@dataclass(frozen=True)
class Fuzzer:
    """A built fuzzer: its engine, and what to run."""

    engine: str
    program: Path
    target: Target

    def command(self, arguments: argparse.Namespace, artifacts: Path, fresh: Path) -> list[str]:
        """Return the command line of a run, or of a replay of the files given."""
        shared, corpus = [f"-artifact_prefix={artifacts}/"], str(self.target.corpus)
        if arguments.replay:
            return [str(self.program), *shared, *map(str, arguments.replay)]
        shared += [f"-seed={arguments.seed}", f"-max_len={arguments.max_len}"]
        if self.engine == "libfuzzer":
            limits = [f"-max_total_time={arguments.seconds}", "-timeout=20", "-verbosity=0"]
            return [str(self.program), *shared, *limits, "-use_value_profile=1", str(fresh), corpus]
        return [str(self.program), *shared, f"-seconds={arguments.seconds}", corpus]


def check_source() -> Path:
    """Return the check.c that is fuzzed."""
    return Path(os.environ.get("PYC_CHECK_C") or NATIVE / "shared" / "check.c")


def _decoders(into: Path) -> Iterator[tuple[Path, list[str]]]:
    include = f"-I{NATIVE / 'include'}"
    for path in (HERE / "decoders.c", check_source()):
        yield path, [include]


def _smaller(into: Path) -> Path:
    """Return a copy of the sources with smaller bounds and system calls routed through the harness."""
    copy = into / "native"
    shutil.copytree(os.environ.get("PYC_NATIVE") or NATIVE, copy, dirs_exist_ok=True)
    changes = [(copy / "include" / "raw.h", old, new) for old, new in _KERNEL]
    for old, new in _SMALLER.items():
        changes.append((copy / "helper" / "archive" / ("marks.c" if "NOTES" in old else "tar.h"), old, new))
    for path, old, new in changes:
        text = path.read_text()
        if old not in text:
            raise RuntimeError(f"{path.name} has no {old!r} any more")
        path.write_text(text.replace(old, new))
    return copy


def _layers(into: Path) -> Iterator[tuple[Path, list[str]]]:
    copy = _smaller(into)
    include = [f"-I{copy}", f"-I{copy / 'helper' / 'archive'}", f"-I{copy / 'include'}"]
    for path in sorted(HERE.glob("layers*.c")):
        yield path, include
    for path in sorted((copy / "helper" / "archive").glob("*.c")):
        if path.name not in ("unpack.c", "pack.c"):  # layers_*.c
            yield path, include
    yield copy / "helper" / "cleanup" / "remove.c", include
    yield copy / "shared" / "wire.c", [*include, *_OWN_MEMORY]


TARGETS = {
    "decoders": Target("decoders", ("mutate.c",), _decoders),
    "layers": Target("layers", ("mutate_tar.c", "members.c"), _layers),
}


def _candidates(engine: str) -> list[tuple[str, list[str], list[str], list[str]]]:
    """Return (engine, compiler, flags of the target, driver), best first."""
    clang = shlex.split(os.environ.get("PYC_FUZZ_CLANG", "clang"))
    gcc = shlex.split(os.environ.get("PYC_FUZZ_GCC", "gcc"))
    plain = f"-fsanitize={_SANITIZERS}"
    every = [
        ("libfuzzer", clang, [f"-fsanitize=fuzzer,{_SANITIZERS}"], ["libfuzzer.c"]),
        ("standalone", gcc, [plain, _COVERAGE], ["standalone.c"]),
        ("standalone", clang, [plain], ["standalone.c"]),
    ]
    return [one for one in every if engine in ("auto", one[0]) and shutil.which(one[1][0])]


def _has_runtime(compiler: list[str], sanitizers: str, into: Path) -> bool:
    """Return whether the compiler can build a program with these sanitizers that runs."""
    probe, program = into / "probe.c", into / "probe"
    entry = "int LLVMFuzzerTestOneInput (const unsigned char *d, unsigned long n) { return d == 0 && n; }"
    probe.write_text(entry if "fuzzer" in sanitizers else "int main (void) { return 0; }")
    built = subprocess.run(
        [*compiler, sanitizers, "-o", str(program), str(probe)], capture_output=True, check=False
    )
    if built.returncode:
        return False
    return subprocess.run([str(program), "-runs=1"], capture_output=True, check=False).returncode == 0


def build(into: Path, target: Target, engine: str = "auto") -> Fuzzer:
    """Build with the first compiler that has the runtime.  Raises NoCompiler, CalledProcessError."""
    for name, compiler, added, driver in _candidates(engine):
        if not _has_runtime(compiler, added[0], into):
            continue
        program = into / f"{target.name}-{name}"
        objects = []
        for at, (source, options) in enumerate(target.files(into)):
            objects.append(str(into / f"{at}-{source.stem}.o"))
            compiled = ["-c", str(source), "-o", objects[-1]]
            # A driver of clang's would be linked into each object.
            traced = [option.replace("=fuzzer,", "=fuzzer-no-link,") for option in added]
            subprocess.run([*compiler, *_FLAGS, *traced, *options, f"-I{HERE}", *compiled], check=True)
        own = [str(HERE / part) for part in (*driver, *target.mutations, "random.c")]
        include = [f"-I{NATIVE / 'include'}", f"-I{HERE}"]
        command = [*compiler, *_FLAGS, added[0], *include, *own, *objects, "-o", str(program)]
        subprocess.run(command, check=True)
        return Fuzzer(name, program, target)
    raise NoCompiler(
        "no compiler with the AddressSanitizer runtime (gcc with libasan, or clang with its own)"
    )


def _report(fuzzer: Fuzzer, done: subprocess.CompletedProcess[str], elapsed: float, found: list[Path]) -> int:
    counts = re.search(rf"^{fuzzer.target.name}: executions=(\d+) (.*)$", done.stderr, re.MULTILINE)
    executions, accepted = (int(counts[1]), counts[2]) if counts else (0, "")
    print(f"fuzz: {fuzzer.target.name}, engine {fuzzer.engine}")
    for line in re.findall(r"^(?:corpus|coverage): .*$", done.stderr, re.MULTILINE):
        print(f"fuzz: {line}")
    print(f"fuzz: executions={executions} {accepted} seconds={elapsed:.1f}")
    if done.returncode == 0 and executions:
        print("fuzz: clean")
        return 0
    print(done.stderr, file=sys.stderr)
    for path in found:
        print(f"fuzz: FINDING: replay with {Path(__file__).name} --replay {path}")
    if found or done.returncode in _FOUND:
        return 1
    print(f"fuzz: the fuzzer ended with {done.returncode}", file=sys.stderr)
    return 2


def _keep(findings: Path, kept: Path) -> list[Path]:
    """Copy findings to a directory that outlives this run."""
    copies = []
    for path in sorted(findings.iterdir()):
        kept.mkdir(parents=True, exist_ok=True)
        copies.append(Path(shutil.copy(path, kept)))
    return copies


def _make_room(top: Path) -> Path:
    """Return a directory for unpacked files, in memory if possible."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="pyc-fuzz-", dir=memory if os.access(memory, os.W_OK) else top))


def _remove_room(room: Path) -> None:
    """Remove the directory, with paths beyond PATH_MAX and unreadable directories."""
    subprocess.run(["chmod", "-R", "u+rwX", str(room)], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["rm", "-rf", str(room)], check=True)


def main() -> int:
    """Build, run and report; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", choices=sorted(TARGETS), default="decoders")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-len", type=int, default=4096)
    parser.add_argument("--engine", choices=("auto", "libfuzzer", "standalone"), default="auto")
    parser.add_argument("--artifacts", type=Path, help="where findings are kept")
    parser.add_argument("--replay", type=Path, nargs="+", help="execute these files and nothing else")
    arguments = parser.parse_args()
    artifacts: Path = arguments.artifacts or Path(tempfile.gettempdir()) / f"pyc-fuzz-{os.getuid()}"
    with tempfile.TemporaryDirectory(prefix="pyc-fuzz-") as directory:
        top = Path(directory)
        try:
            fuzzer = build(top, TARGETS[arguments.target], arguments.engine)
        except NoCompiler as error:
            print(f"fuzz: skipped: {error}")
            return SKIPPED
        except subprocess.CalledProcessError:
            return 2
        for path in (findings := top / "findings", fresh := top / "fresh"):
            path.mkdir()
        room = _make_room(top)
        begun = time.monotonic()
        done = subprocess.run(
            fuzzer.command(arguments, findings, fresh),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, **_OPTIONS, "PYC_FUZZ_ROOM": str(room)},
        )
        _remove_room(room)
        elapsed = time.monotonic() - begun
        return _report(fuzzer, done, elapsed, _keep(findings, artifacts))


if __name__ == "__main__":
    sys.exit(main())
