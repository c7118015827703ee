"""Extraction of an archive into an existing directory by the confined unpacker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pycontain._images.inflate import Inflater
from pycontain._images.layers import checked, opened
from pycontain._kernel.unpacker import Unpacker
from pycontain.errors import ImageError

if TYPE_CHECKING:
    from pycontain._images.store import Store


def extract(
    store: Store,
    root: int,
    chunks: Iterable[bytes],
    *,
    first_id: int,
    lowers: Sequence[str] | None = None,
) -> None:
    """Extract an archive, compressed or not, into a directory's fd.

    Args:
        store: The store whose limits and launcher are used.
        root: The fd of the directory.
        chunks: The archive.
        first_id: The host id of the archive's id 0.
        lowers: The directories below, the uppermost first, when the archive is a layer; without them it
            is a tree, in which whiteout names have no meaning.

    Raises:
        ImageError: The archive is damaged or exceeds a limit.
    """
    inflater = Inflater(store.limits)
    unpacker = Unpacker(
        store.make_launcher,
        root,
        owners=store.owners,
        readable=not store.owners,
        devices=lowers is not None and store.privileged,
        tree=lowers is None,
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
        raise ImageError("the unpacker died", hint="see whether it was out of memory") from error
    finally:
        unpacker.close()


def _write(unpacker: Unpacker, piece: bytes) -> None:
    try:
        unpacker.feed(piece)
    except BrokenPipeError:
        checked("unpacked", unpacker.report())
        raise
