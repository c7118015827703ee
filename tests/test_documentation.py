"""Completeness of the documentation: every room is named, every public name and member is described."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference" / "api.md"
PAGES = (ROOT / "docs" / "explanation" / "architecture.md", ROOT / "CONTRIBUTING.md")
DOORS = ("pycontain", "pycontain.oci", "pycontain.lowlevel", "pycontain.errors")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A directive of the reference: its options, and the attributes that are described below it."""

    options: dict[str, str]
    attributes: frozenset[str]

    def shows(self, name: str, *, inherited: bool) -> bool:
        """Return whether autodoc shows this member."""
        if name in self.attributes:
            return True
        if "members" not in self.options or (inherited and "inherited-members" not in self.options):
            return False
        return not self.options["members"] or name in re.split(r",\s*", self.options["members"])


def _entries(text: str) -> dict[str, Entry]:
    found = {}
    for match in re.finditer(r"^\.\. (?:auto\w+|data):: (\S+)\n((?:(?: +.*)?\n)*)", text, re.MULTILINE):
        options = dict(re.findall(r"^ {3}:([\w-]+): ?(.*)$", match[2], re.MULTILINE))
        attributes = re.findall(r"^ {3}\.\. (?:attribute|method|property):: (\w+)", match[2], re.MULTILINE)
        found[match[1]] = Entry(options, frozenset(attributes))
    return found


@functools.cache
def _reference() -> dict[str, Entry]:
    return _entries(REFERENCE.read_text(encoding="utf-8"))


def _exports() -> Iterator[tuple[str, object]]:
    for door in DOORS:
        module = importlib.import_module(door)
        errors = [name for name, one in vars(module).items() if isinstance(one, type)]
        for name in getattr(module, "__all__", errors):
            if getattr(getattr(module, name), "__module__", door).startswith(("pycontain", "builtins")):
                yield f"{door}.{name}", getattr(module, name)


def _members(cls: type) -> Iterator[tuple[str, bool]]:
    """Yield public methods and properties of a class, and whether they come from a base of pycontain."""
    seen = set()
    for owner in cls.__mro__:
        if not owner.__module__.startswith("pycontain"):
            continue
        for name, value in vars(owner).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            if inspect.isroutine(value) or isinstance(value, property | functools.cached_property):
                yield name, owner is not cls


def _fields(cls: type) -> list[str]:
    """Return the public attributes that the class itself declares."""
    names = [one.name for one in attrs.fields(cls)] if attrs.has(cls) else inspect.get_annotations(cls)
    return [name for name in names if not name.startswith("_")]


EXPORTS = dict(_exports())
CLASSES = {name: one for name, one in EXPORTS.items() if inspect.isclass(one)}


def _entry(name: str) -> Entry | None:
    """Return the entry of a name; exceptions are documented where users import them from."""
    _, _, short = name.rpartition(".")
    return _reference().get(name) or _reference().get(f"pycontain.{short}")


def _rooms() -> list[str]:
    package, native = ROOT / "src" / "pycontain", ROOT / "src" / "_native"
    rooms = [path.name.removesuffix(".py") for path in package.iterdir() if _is_room(path)]
    return rooms + [
        path.name for top in (native, native / "helper") for path in top.iterdir() if path.is_dir()
    ]


def _is_room(path: Path) -> bool:
    return (path / "__init__.py").is_file() or (path.suffix == ".py" and path.stem != "__init__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_room_is_named(page: Path) -> None:
    words = set(re.findall(r"\w+", page.read_text(encoding="utf-8")))
    rooms = _rooms()

    assert len(rooms) > 20
    assert [room for room in rooms if room not in words] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_exists(page: Path) -> None:
    """Names of files are relative to the checkout, the package or the C code."""
    names = re.findall(r"`([\w./-]+\.(?:py|c|h|md|txt))`", page.read_text(encoding="utf-8"))
    tops = (ROOT, ROOT / "src" / "pycontain", ROOT / "src" / "_native")

    assert names
    assert [name for name in names if not any((top / name).is_file() for top in tops)] == []


def test_a_missing_member_is_found() -> None:
    (entry,) = _entries(".. autoclass:: x.Y\n   :members: one\n\n   .. attribute:: two\n").values()
    assert [entry.shows(name, inherited=False) for name in ("one", "two", "three")] == [True, True, False]
    assert not entry.shows("one", inherited=True)


@pytest.mark.parametrize("name", EXPORTS)
def test_name_is_documented(name: str) -> None:
    assert _entry(name) is not None


@pytest.mark.parametrize("name", CLASSES)
def test_members_are_documented(name: str) -> None:
    entry = _entry(name)
    assert entry is not None
    members = dict(_members(CLASSES[name]))

    assert [one for one, base in members.items() if not entry.shows(one, inherited=base)] == []
    if "undoc-members" not in entry.options:
        assert [one for one in members if not inspect.getdoc(getattr(CLASSES[name], one))] == []


@pytest.mark.parametrize("name", CLASSES)
def test_fields_are_documented(name: str) -> None:
    entry, doc = _entry(name), inspect.getdoc(CLASSES[name]) or ""
    assert entry is not None
    if "undoc-members" in entry.options:
        return
    described = {word for word in re.findall(r"\w+", doc)} | entry.attributes

    assert [one for one in _fields(CLASSES[name]) if one not in described] == []


PROSE = re.compile(r"(?:^|(?<=\.  ))([a-z_]\w*(?:, [a-z_]\w*)*): ", re.MULTILINE)
"""'name: text' at the start of a line, or after a sentence, instead of a section Args or Attributes."""


def _in_prose(thing: object) -> list[str]:
    """Return parameters and fields that a docstring describes outside of its sections."""
    names = set(inspect.get_annotations(thing)) if isinstance(thing, type) else set()
    if callable(thing):
        with contextlib.suppress(TypeError, ValueError):  # builtins have no signature
            names |= set(inspect.signature(thing).parameters)
    doc = inspect.getdoc(thing) or ""
    return [match[1] for match in PROSE.finditer(doc) if set(match[1].split(", ")) <= names]


@pytest.mark.parametrize("name", EXPORTS)
def test_arguments_are_in_sections(name: str) -> None:
    thing = EXPORTS[name]
    members = [getattr(thing, one) for one, _ in _members(thing)] if isinstance(thing, type) else []

    assert [one for each in (thing, *members) for one in _in_prose(each)] == []


def test_an_argument_in_prose_is_found() -> None:
    def plain(size: int) -> None:
        """Do it.  size: in bytes."""

    def sections(size: int) -> None:
        """Do it.

        Args:
            size: Bytes.
        """

    assert (_in_prose(plain), _in_prose(sections)) == (["size"], [])


def test_the_reference_has_no_other_names() -> None:
    assert [name for name in _reference() if name not in EXPORTS and name not in DOORS] == []
