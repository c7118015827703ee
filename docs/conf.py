"""Sphinx configuration: `python -m sphinx -W -b html docs docs/_build/html`."""

from __future__ import annotations

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


def setup(app: Sphinx) -> None:
    """Connect the handlers below to Sphinx."""
    app.connect("autodoc-process-signature", _shorten_signature)
    app.connect("doctree-resolved", _name_publicly)


def _name_publicly(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Set titles of links to public names, such as `pycontain.Container`."""
    for link in tree.findall(nodes.reference):
        title = link.get("reftitle", "")
        if title.startswith("pycontain._"):
            link["reftitle"] = f"pycontain.{title.rpartition('.')[2]}"


def _shorten_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, args: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Return the signature with public names and real defaults."""
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
    """Replace `attr_dict['pids'].default`, which attrs generates, by the default itself."""
    defaults = {field.name: repr(field.default) for field in attrs.fields(thing)}
    if isinstance(getattr(attrs.fields_dict(thing).get("mode"), "default", None), int):
        defaults["mode"] = oct(attrs.fields_dict(thing)["mode"].default)

    def shown(match: re.Match[str]) -> str:
        text = defaults[match[1]]
        return text if len(text) <= 24 else "..."

    return re.sub(r"attr_dict\['(\w+)'\]\.default", shown, args).replace("NOTHING", "...")
