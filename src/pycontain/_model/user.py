"""Who runs a command, as people write it: the syntax alone, no names are looked up here."""

from __future__ import annotations

from pycontain._model.sizes import shown

LAST_ID = (1 << 32) - 2
"""The highest id of a user or group; the one above means 'no change' to the kernel."""

_LONGEST = 256
"""Characters of a name, as LOGIN_NAME_MAX has it."""


def check_user(user: str | int) -> str:
    """The text of a user that can be meant: 'name', 'uid', 'name:group', 'uid:gid', or '' for root.

    Raises as `split_user` does.
    """
    split_user(user)
    return str(user)


def asked_user(user: str | int) -> str:
    """Return the text of a user that a caller names.

    Raises:
        ValueError: For empty text: the default may have fewer rights than root.  Also as `split_user`.
        TypeError: As `split_user`.
    """
    if user == "":
        raise ValueError("user must be a name or an id, got ''; leave it out for the default")
    return check_user(user)


def split_user(user: str | int) -> tuple[str, str]:
    """Name or uid, and group or gid; '' for each that is not given.

    Raises ValueError for an empty half, blanks and control characters, negative ids and those
    above LAST_ID, TypeError for what is neither text nor a number.
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
    """Is this part an id?  Everything else is a name."""
    return text.isascii() and text.isdigit()


def _is_part(text: str) -> bool:
    if not text or ":" in text or not text.isprintable() or any(c.isspace() for c in text):
        return False
    return is_number(text) or (len(text) <= _LONGEST and not text.startswith("-"))
