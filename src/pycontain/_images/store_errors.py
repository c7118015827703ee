"""Translation of OSError on the store's files to typed errors that name the store."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from pycontain.errors import ImageError, PathError, PycontainError

HINTS = {
    errno.ENOSPC: "free space there, or use another PYCONTAIN_ROOT",
    errno.EDQUOT: "free space within the user's quota, or use another PYCONTAIN_ROOT",
    errno.EROFS: "mount its file system read-write, or use another PYCONTAIN_ROOT",
}
"""Hints for a store that cannot be written to, by errno."""


@contextlib.contextmanager
def translate_store_errors(place: str) -> Iterator[None]:
    """Translate an OSError to an ImageError that names the store and the file."""
    try:
        yield
    except PycontainError:  # some are OSErrors too
        raise
    except OSError as error:
        raise ImageError(f"the store {place}: {_words(error)}", hint=HINTS.get(error.errno or 0)) from error


@contextlib.contextmanager
def translate_path_errors(path: str) -> Iterator[None]:
    """Translate an OSError on a file of the caller to a PathError."""
    try:
        yield
    except PycontainError:
        raise
    except OSError as error:
        number = error.errno or 0
        raise PathError(f"cannot write {path}: {_words(error)}", path=path, errno=number) from error


def _words(error: OSError) -> str:
    said = error.strerror or str(error)
    return f"{said}: {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else said
