"""What goes into a volume: an archive, or what an image has at the place."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pycontain._images.inflate import Inflater
from pycontain._images.layers import checked
from pycontain._kernel.unpacker import Unpacker
from pycontain._state.owner import STORE_BLOCK
from pycontain.errors import ImageError

if TYPE_CHECKING:
    from pycontain._images.store import Store


def first_id_of(store: Store) -> int:
    """What a guest's 0 is on the disk in a volume."""
    return STORE_BLOCK if store.privileged else 0


def fill(store: Store, root: int, chunks: Iterable[bytes]) -> None:
    """Unpack an archive into a directory, by the confined unpacker.  Raises ImageError."""
    inflater = Inflater(store.limits)
    unpacker = Unpacker(
        store.make_launcher,
        root,
        owners=store.owners,
        readable=not store.owners,
        plain=True,
        first_id=first_id_of(store),
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
        checked("unpacked", unpacker.report(), "the volume")
        checked("unpacked", unpacker.finish([]), "the volume")
    except (BrokenPipeError, ConnectionError) as error:
        raise ImageError("the volume's unpacker died", hint="its memory may have been used up") from error
    finally:
        unpacker.close()


def _write(unpacker: Unpacker, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        try:
            view = view[os.write(unpacker.stream, view) :]
        except BrokenPipeError:
            checked("unpacked", unpacker.report(), "the volume")
            raise
