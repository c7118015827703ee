"""Sphinx configuration: `python -m sphinx -W -b html docs docs/_build/html`."""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from pathlib import Path

import attrs
from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

project = "pycontain"
author = "the authors of pycontain"
project_copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_use_ivar = True  # fields of values are described once, by their class

html_theme = "furo"
html_title = f"pycontain {release}"
html_show_copyright = False
html_show_sphinx = False

_WITHOUT_ARGUMENTS = {"Process", "ExecResult"}
"""Classes that users receive and never construct; their constructors are not documented."""

_SPELLED_OUT = {
    "specs.Mounts": "Mapping[str, Bind | Tmpfs | str | PathLike[str]]",
    "specs.TmpfsOption": "Mapping[str, Tmpfs | int | str | None] | Iterable[str]",
    "Args": "str | Sequence[str]",
    "os.PathLike": "PathLike",
    "signals.SIGKILL": "SIGKILL",
}
"""Names of rooms that a signature shows where a hint cannot be resolved at run time."""

_SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):$|^:(param|returns|raises)\b", re.MULTILINE)
"""Of a docstring in Google style, which napoleon lays out."""

_ITEM = re.compile(r"(?:^|(?<=\.  ))([a-z_]\w*(?:, [a-z_]\w*)*): ")
"""'memory, cpus: text' at the start of a paragraph, or behind the two spaces that end a sentence."""


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _shorten_signature)
    app.connect("autodoc-process-docstring", _list_parameters)
    app.connect("doctree-resolved", _name_publicly)


def _name_publicly(app: Sphinx, tree: nodes.document, page: str) -> None:
    """A link says `pycontain.Container`, not the module that holds the class."""
    for link in tree.findall(nodes.reference):
        title = link.get("reftitle", "")
        if title.startswith("pycontain._"):
            link["reftitle"] = f"pycontain.{title.rpartition('.')[2]}"


def _shorten_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, args: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Signatures as a caller thinks of them."""
    if args is None:
        return args, returns
    if what == "exception" or name.rpartition(".")[2] in _WITHOUT_ARGUMENTS:
        return "", returns
    if isinstance(thing, type) and attrs.has(thing):
        args = _with_defaults(thing, args)
    for private, public in _SPELLED_OUT.items():
        args = re.sub(rf"\b{re.escape(private)}\b", public, args)
    return args, returns


def _with_defaults(thing: type, args: str) -> str:
    """attrs writes its constructors; `attr_dict['pids'].default` stands for a default there."""
    defaults = {field.name: repr(field.default) for field in attrs.fields(thing)}
    if isinstance(getattr(attrs.fields_dict(thing).get("mode"), "default", None), int):
        defaults["mode"] = oct(attrs.fields_dict(thing)["mode"].default)

    def shown(match: re.Match[str]) -> str:
        text = defaults[match[1]]
        return text if len(text) <= 24 else "..."

    return re.sub(r"attr_dict\['(\w+)'\]\.default", shown, args).replace("NOTHING", "...")


def _list_parameters(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Docstrings are prose; 'name: text.  name: text.' is shown as a list."""
    text = "\n".join(lines)
    if "::\n" in text or ">>>" in text or _SECTION.search(text):
        return
    names = _described(thing)
    shown: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        shown += _listed(re.sub(r"\n\s*", _joint, paragraph), names)
    lines[:] = shown


def _joint(match: re.Match[str]) -> str:
    """What stands for a line break: two spaces behind a sentence, as inside a line."""
    return "  " if match.string[: match.start()].endswith(".") else " "


def _described(thing: object) -> set[str]:
    """Parameters and attributes that a docstring may describe."""
    names = set(getattr(thing, "__annotations__", ()))
    if isinstance(thing, type) and inspect.isfunction(thing.__init__):
        names |= set(
            inspect.unwrap(thing.__init__).__code__.co_names
        )  # what __init__ sets: ExecResult.reason
    if callable(thing):
        try:
            names |= set(inspect.signature(thing).parameters)
        except (TypeError, ValueError):
            pass
    return names


def _listed(paragraph: str, names: set[str]) -> list[str]:
    starts = [match for match in _ITEM.finditer(paragraph) if set(match[1].split(", ")) <= names]
    if not starts:
        return [paragraph, ""]
    before = paragraph[: starts[0].start()].rstrip()
    lines = [before, ""] if before else []
    after = ""
    for match, following in zip(starts, [*starts[1:], None], strict=True):
        item = paragraph[match.end() : following.start() if following else len(paragraph)].rstrip()
        if following is None:
            item, raises, after = item.partition("  Raises ")
            after = f"Raises {after}" if raises else ""
        terms = ", ".join(f"**{name}**" for name in match[1].split(", "))
        lines.append(f"- {terms}: {item}")
    return [*lines, "", after, ""]
