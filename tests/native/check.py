"""Check the C code: calls and includes, warnings as errors with every available compiler, gcc -fanalyzer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.native import calls  # noqa: E402  (run as a script, by make c-check)

NATIVE = ROOT / "src" / "_native"
ANALYZER = ["-fanalyzer", "-Wno-analyzer-too-complex"]


def _builder() -> Any:
    spec = importlib.util.spec_from_file_location("build_ffi", NATIVE / "ext" / "build_ffi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(label: str, command: list[str]) -> bool:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    print(f"c-check: {label}: {'clean' if done.returncode == 0 and not done.stderr else 'FAILED'}")
    if done.returncode or done.stderr:
        print(done.stderr)
    return done.returncode == 0 and not done.stderr


def main() -> int:
    """Run every check and return 0 if all are clean."""
    builder = _builder()
    good = calls.main() == 0
    with tempfile.TemporaryDirectory(prefix="pyc-c-") as directory:
        out = Path(directory) / "program"
        for compiler in ("gcc", "clang", "aarch64-linux-gnu-gcc"):
            if shutil.which(compiler) is None:
                print(f"c-check: {compiler}: skipped: not installed")
                continue
            os.environ["PYCONTAIN_CC"] = compiler
            for name in builder.PROGRAMS:
                good &= _run(f"{compiler} {name}", builder.program_command(name, out))
                if compiler == "gcc":
                    command = [*builder.program_command(name, out), *ANALYZER]
                    good &= _run(f"gcc -fanalyzer {name}", command)
        include = ["-I", str(NATIVE / "include"), "-I", sysconfig.get_paths()["include"]]
        for source in sorted((NATIVE / "ext").glob("*.c")):
            if source.name == "programs.c":
                continue
            command = [
                "gcc",
                *builder.WARNINGS,
                "-std=gnu11",
                "-O2",
                *ANALYZER,
                *include,
                "-c",
                "-o",
                str(out),
            ]
            good &= _run(f"gcc -fanalyzer {source.name}", [*command, str(source)])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
