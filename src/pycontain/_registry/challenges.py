"""Challenges of a WWW-Authenticate header (RFC 9110, 11.6.1).

One header may hold several challenges, and commas separate both challenges and parameters. A word followed by
`=` is a parameter of the challenge before it; any other word begins the next challenge.
"""

from __future__ import annotations

import re

from attrs import frozen

_MOST = 8192
"""Characters of a header that are parsed."""
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,512}"
_END = r"[ \t]*(?=,|\Z)"
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}){_END})')
_SCHEME = re.compile(rf"({_TOKEN})(?:[ \t]+|(?=,)|\Z)")
_TOKEN68 = re.compile(rf"[A-Za-z0-9._~+/-]+=*{_END}")
_UNQUOTED = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*([^\s,"]+)')
"""Unquoted URL, which the grammar forbids and some registries send."""
_BETWEEN = re.compile(r"[ \t,]*")
_UNREADABLE = re.compile(r"[^,]*")
_ESCAPE = re.compile(r'\\(["\\])')
"""Escapes that are resolved; a realm with any other one is later refused as not a URL."""


@frozen
class Challenge:
    """A scheme and its parameters, as far as registries use them."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""

    @classmethod
    def parse(cls, headers: list[str]) -> Challenge | None:
        """Return the first Bearer challenge, or else the first Basic one, or None."""
        found: dict[str, Challenge] = {}
        for header in headers:
            for scheme, fields in parse_challenges(header[:_MOST]):
                known = {name: fields.get(name, "") for name in ("realm", "service", "scope")}
                found.setdefault(scheme, cls(scheme, **known))
        return found.get("bearer") or found.get("basic")


def parse_challenges(header: str) -> list[tuple[str, dict[str, str]]]:
    """Parse one header into schemes with their parameters, both names in lower case.

    A `token68` is left out. Text outside of the grammar is skipped up to the next comma.
    """
    found: list[tuple[str, dict[str, str]]] = []
    at = _BETWEEN.match(header).end()  # type: ignore[union-attr]
    fresh = False
    while at < len(header):
        match = _PARAMETER.match(header, at) if found else None
        if match is None and fresh:
            match = _TOKEN68.match(header, at)
            if match is not None and match.re is _TOKEN68:
                at, fresh = _BETWEEN.match(header, match.end()).end(), False  # type: ignore[union-attr]
                continue
        if match is None and found:
            match = _UNQUOTED.match(header, at)
        if match is not None:
            _add(found[-1][1], match)
            fresh = False
        elif (match := _SCHEME.match(header, at)) is not None:
            found.append((match[1].lower(), {}))
            fresh = not header.startswith(",", match.end())
        else:
            match, fresh = _UNREADABLE.match(header, at), False
            assert match is not None
        at = _BETWEEN.match(header, match.end()).end()  # type: ignore[union-attr]
    return found


def _add(fields: dict[str, str], match: re.Match[str]) -> None:
    quoted = match.re is _PARAMETER and match[2] is not None
    value = _ESCAPE.sub(r"\1", match[2]) if quoted else match[match.lastindex or 2]
    fields.setdefault(match[1].lower(), value)
