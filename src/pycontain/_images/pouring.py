"""An archive into a directory that stands, by the confined unpacker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pycontain._images.inflate import Inflater
from pycontain._images.layers import checked, opened
from pycontain._kernel.unpacker import Unpacker
from pycontain.errors import ImageError

if TYPE_CHECKING:
    from pycontain._images.store import Store


def pour(
    store: Store,
    root: int,
    chunks: Iterable[bytes],
    *,
    first_id: int,
    lowers: Sequence[str] | None = None,
) -> None:
    """Unpack an archive, compressed or not, into a directory's fd.  Raises ImageError.

    first_id: what the archive's 0 becomes.  lowers: it is a layer upon the one that stands there, and these
    directories are below, the uppermost first; without them it is a tree, whose names mean nothing.
    """
    inflater = Inflater(store.limits)
    unpacker = Unpacker(
        store.make_launcher,
        root,
        owners=store.owners,
        readable=not store.owners,
        devices=lowers is not None and store.privileged,
        plain=lowers is None,
        merge=lowers is not None,
        first_id=first_id,
        landlock=store.landlock,
        size=store.limits.size,
        entries=store.limits.entries,
    )
    try:
        for chunk in chunks:
            for piece in inflater.feed(chunk):
                _write(unpacker, piece)
        for piece in inflater.finish():
            _write(unpacker, piece)
        unpacker.end_stream()
        checked("unpacked", unpacker.report(), store.roots.data)
        with opened(lowers or ()) as fds:
            checked("unpacked", unpacker.finish(fds), store.roots.data)
    except (BrokenPipeError, ConnectionError) as error:
        raise ImageError("the unpacker died", hint="its memory may have been used up") from error
    finally:
        unpacker.close()


def _write(unpacker: Unpacker, piece: bytes) -> None:
    try:
        unpacker.feed(piece)
    except BrokenPipeError:
        checked("unpacked", unpacker.report())
        raise
