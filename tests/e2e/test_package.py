"""The package as users get it: demo, wheel, sdist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def _run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_demo(tmp_path: Path) -> None:
    shown = _run(sys.executable, "examples/demo.py", PYCONTAIN_ROOT=str(tmp_path))
    assert "still usable: yes" in shown
    assert re.search(r"reason '(oom|exit|signal)'", shown)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory with wheel and sdist of a clean checkout."""
    top = tmp_path_factory.mktemp("build")
    source = top / "source"
    source.mkdir()
    listed = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, listed):
        if not (ROOT / name).is_file():
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(top / "dist"), str(source))
    return top / "dist"


def test_wheel_carries_all_and_no_sources(built: Path) -> None:
    wheel = next(built.glob("*.whl"))
    assert "abi3" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "pycontain/py.typed" in names
    assert any(name.endswith("_ffi.abi3.so") for name in names)
    assert not any("_native" in name or name.endswith((".c", ".h")) for name in names)


@pytest.mark.case("X08")
def test_wheel_holds_hardened_programs_and_nothing_setuid(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [one for one in archive.infolist() if one.external_attr >> 16 & 0o6002]
        archive.extractall(tmp_path)
    (extension,) = tmp_path.rglob("_ffi*.so")
    programs = [extension, *_embedded(extension.read_bytes(), tmp_path)]
    assert len(programs) == 3
    for program in programs:
        assert _weaknesses(program) == []


@pytest.mark.control("X08")
def test_a_program_without_hardening_is_seen(tmp_path: Path) -> None:
    source, program = tmp_path / "weak.c", tmp_path / "weak"
    source.write_text("int main (void) { return 0; }\n")
    flags = ["-no-pie", "-Wl,-z,norelro", "-Wl,-z,lazy", "-Wl,-z,execstack"]
    subprocess.run(["gcc", *flags, "-o", str(program), str(source)], check=True, capture_output=True)
    assert len(_weaknesses(program)) >= 2


def _embedded(data: bytes, top: Path) -> list[Path]:
    """Return the ELF programs inside of the extension, each from its header on."""
    found: list[Path] = []
    at = data.find(b"\x7fELF", 4)
    while at >= 0:
        path = top / f"program{len(found)}"
        path.write_bytes(data[at:])
        found.append(path)
        at = data.find(b"\x7fELF", at + 4)
    return found


def _weaknesses(program: Path) -> list[str]:
    """Return hardening problems of an ELF file: a fixed load address, writable and executable segments."""
    done = subprocess.run(["readelf", "-hlW", str(program)], capture_output=True, text=True, check=False)
    found = []
    if not re.search(r"Type:\s+DYN", done.stdout):
        found.append("not position independent")
    for line in done.stdout.splitlines():
        kind, flags = line.split()[:1], line[-20:]
        if kind in (["LOAD"], ["GNU_STACK"]) and "RWE" in flags:
            found.append(f"{kind[0]} can be written and executed")
    return found


def test_wheel_works_without_a_compiler(built: Path, tmp_path: Path) -> None:
    wheel = next(built.glob("*.whl"))
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    code = "import pycontain; print(pycontain.run(None, ['echo', 'from the wheel']).stdout, end='')"
    shown = _run(python, "-c", code, cwd=tmp_path, PYCONTAIN_ROOT=str(tmp_path / "root"), CC="/bin/false")
    assert shown == "from the wheel\n"


def test_sdist_contains_the_build_inputs(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    for wanted in (
        "src/_native/ext/ffi.cdef",
        "src/_native/helper/main.c",
        "src/_native/include/plan.h",
        "LICENSE",
    ):
        assert any(name.endswith(wanted) for name in names), wanted


def test_readme_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        _run(sys.executable, "-c", block, cwd=tmp_path, PYCONTAIN_ROOT=str(tmp_path / "root"))
