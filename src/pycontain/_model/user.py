"""Syntax of users, as in 'name', 'uid', 'name:group' or 'uid:gid'; names are looked up elsewhere."""

from __future__ import annotations

from pycontain._model.sizes import shown

LAST_ID = (1 << 32) - 2
"""Maximum id of a user or group; the next number means 'no change' to the kernel."""

_LONGEST = 256
"""Maximum number of characters of a name, as LOGIN_NAME_MAX."""


def check_user(user: str | int) -> str:
    """Return a user as text; '' means root.

    Raises:
        ValueError: As `split_user`.
        TypeError: As `split_user`.
    """
    split_user(user)
    return str(user)


def asked_user(user: str | int) -> str:
    """Return the user that a caller passed, as text.

    Raises:
        ValueError: The user is empty, which could mean more rights than the default; or as `split_user`.
        TypeError: As `split_user`.
    """
    if user == "":
        raise ValueError("user must be a name or an id, got ''; leave it out for the default")
    return check_user(user)


def split_user(user: str | int) -> tuple[str, str]:
    """Return the name or uid, and the group or gid; '' for a missing one.

    Raises:
        ValueError: A part is empty or has blanks or control characters, or an id is out of range.
        TypeError: The value is neither text nor an int.
    """
    if isinstance(user, int) and not isinstance(user, bool):
        if not 0 <= user <= LAST_ID:
            raise ValueError(f"a user or group id must be between 0 and {LAST_ID}, got {shown(user)}")
        return str(user), ""
    if not isinstance(user, str):
        raise TypeError(f"user must be text or an int, got {shown(user)}")
    if not user:
        return "", ""
    name, colon, group = user.partition(":")
    parts = (name, group) if colon else (name,)
    if not all(_is_part(part) for part in parts):
        raise ValueError(f"user must be 'name', 'uid', 'name:group' or 'uid:gid', got {shown(user)}")
    for part in parts:
        if is_number(part) and (len(part.lstrip("0")) > 10 or int(part) > LAST_ID):
            raise ValueError(f"a user or group id must be between 0 and {LAST_ID}, got {shown(part)}")
    return name, group


def is_number(text: str) -> bool:
    """Return whether a part is an id instead of a name."""
    return text.isascii() and text.isdigit()


def _is_part(text: str) -> bool:
    if not text or ":" in text or not text.isprintable() or any(c.isspace() for c in text):
        return False
    return is_number(text) or (len(text) <= _LONGEST and not text.startswith("-"))
