"""Look-up of images by reference, digest or id."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pycontain._model.sizes import shown
from pycontain.errors import Conflict, ImageError, InvalidReference, NotFound
from pycontain.oci import Digest, Reference

if TYPE_CHECKING:
    from pycontain._images.store import Store
    from pycontain._state.tables.images import ImageRecord

_ID = re.compile(r"(?:sha256:)?([a-f0-9]{4,64})")


def find(store: Store, name: str) -> tuple[ImageRecord, str]:
    """Find an image by reference, digest, id or prefix of an id; return it with its display name.

    Raises:
        NotFound: The store has no such image.
        Conflict: Several ids have the prefix.
        InvalidReference: The text is neither a reference nor an id.
    """
    digest, called = _resolve(store, name)
    record = None if digest is None else store.record(digest)
    if record is None:
        raise NotFound(f"no image {shown(name)} in the store", hint="fetch it with Image.pull")
    return record, called


def _resolve(store: Store, name: str) -> tuple[Digest | None, str]:
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
    """Look up a prefix of a manifest's or configuration's digest; docker's ids are the latter."""
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
        raise Conflict(f"{len(found)} images have ids that begin with {digits}", hint="use more digits")
    if not found:
        return None, name
    digest = found.pop()
    return digest, name_of(store, digest)


def name_of(store: Store, digest: Digest) -> str:
    """Return the short form of an image's first name, or its digest."""
    for name in store.tags(digest):
        return Reference.parse(name).familiar
    return str(digest)


def tag_name(name: str) -> str:
    """Normalize a reference for use as a tag.

    Raises:
        InvalidReference: The text is not a reference, or has a digest.
    """
    reference = Reference.parse(name)
    if reference.digest is not None:
        raise InvalidReference(f"tag must not have a digest, got {shown(name)}")
    return str(reference)


def check_there(store: Store, record: ImageRecord) -> None:
    """Check that every layer of an image is unpacked.

    Raises:
        ImageError: A layer is missing.
    """
    for chain, _ in store.parts(record.digest):
        if store.layer(chain) is None:
            raise ImageError(
                f"layer {chain} of {record.digest} is missing from the store",
                hint="pull or load the image again",
            )


def remove(store: Store, digest: Digest, name: str, *, force: bool) -> None:
    """Remove a name, and with the last name the image.

    Raises:
        NotFound: The store has no such image.
    """
    names = store.tags(digest)
    try:
        called = str(Reference.parse(name))
    except InvalidReference:
        called = ""
    if not force and called in names and len(names) > 1:
        store.remove_tag(called)
    elif not store.remove_image(digest):
        raise NotFound(f"no image {shown(name)} in the store")
