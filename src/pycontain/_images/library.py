"""Find images of the store by what people call them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pycontain._model.sizes import shown
from pycontain.errors import Conflict, ImageError, InvalidReference, NotFound
from pycontain.oci import Digest, Reference

if TYPE_CHECKING:
    from pycontain._images.store import Record, Store

_ID = re.compile(r"(?:sha256:)?([a-f0-9]{4,64})")


def find(store: Store, name: str) -> tuple[Record, str]:
    """An image by reference, digest, id or the beginning of an id, and what to call it.

    Raises NotFound, Conflict for the beginning of several ids, InvalidReference for text that is
    neither.
    """
    digest, called = _meant(store, name)
    record = None if digest is None else store.record(digest)
    if record is None:
        raise NotFound(f"no image {shown(name)} in the store", hint="Image.pull fetches one")
    return record, called


def _meant(store: Store, name: str) -> tuple[Digest | None, str]:
    reference: Reference | None = None
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise
    if reference is not None:
        found = _by_reference(store, reference)
        if found is not None:
            return found, reference.familiar
    return _by_id(store, name)


def _by_reference(store: Store, reference: Reference) -> Digest | None:
    if reference.digest is None:
        return store.tags().get(str(reference))
    record = store.record(reference.digest)
    return None if record is None else record.digest


def _by_id(store: Store, name: str) -> tuple[Digest | None, str]:
    """By the beginning of the digest of manifest or configuration: docker's ids are the latter."""
    match = _ID.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        return None, name
    digits = match[1]
    found = {
        record.digest
        for record in store.images()
        if record.digest.hex.startswith(digits) or record.config_digest.hex.startswith(digits)
    }
    if len(found) > 1:
        raise Conflict(f"{len(found)} images begin with {digits}")
    if not found:
        return None, name
    digest = found.pop()
    return digest, name_of(store, digest)


def name_of(store: Store, digest: Digest) -> str:
    """The first of an image's names, in short, or its digest."""
    for name in store.tags(digest):
        return Reference.parse(name).familiar
    return str(digest)


def tag_name(name: str) -> str:
    """A name that an image can be given.  Raises InvalidReference for one with a digest."""
    reference = Reference.parse(name)
    if reference.digest is not None:
        raise InvalidReference(f"a name for an image has no digest: {shown(name)}")
    return str(reference)


def check_there(store: Store, record: Record) -> None:
    """Every layer of an image is unpacked.  Raises ImageError, naming what is not there."""
    for chain, _ in store.parts(record.digest):
        if store.layer(chain) is None:
            raise ImageError(
                f"the layer {chain} of {record.digest} is not in the store any more",
                hint="pull or load the image again",
            )


def remove(store: Store, digest: Digest, name: str, *, force: bool) -> None:
    """Forget a name, and with the last one the image.  Raises NotFound."""
    names = store.tags(digest)
    try:
        called = str(Reference.parse(name))
    except InvalidReference:
        called = ""
    if not force and called in names and len(names) > 1:
        store.remove_tag(called)
    elif not store.remove_image(digest):
        raise NotFound(f"no image {shown(name)} in the store")
