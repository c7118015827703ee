"""Consistency check of the store: compare content, trees and records."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import evolve, frozen

from pycontain._images import snapshot_layers
from pycontain._images.blobs import blob_problem
from pycontain._images.layers import LayerBuild, discard, feed_verified
from pycontain._images.rebuild import rebuild
from pycontain._images.write import same_tree
from pycontain._state.locks import exclusive, is_locked
from pycontain._state.tables import images as tables
from pycontain._state.tables import leases
from pycontain.errors import ImageError
from pycontain.oci import Digest, ImageConfig, Manifest

if TYPE_CHECKING:
    from pycontain._images.store import Store
    from pycontain._state.tables.images import ImageRecord

Kind: TypeAlias = Literal["records", "blob", "layer", "image", "snapshot", "permissions"]


@frozen(kw_only=True)
class Damage:
    """One fault of the store.

    Attributes:
        kind: The kind of the damaged thing.
        name: Its digest, id or path.
        problem: A description of the damage.
        images: Digests of the images that it affects.
        repaired: Whether the damaged thing was removed from the store.
    """

    kind: Kind
    name: str
    problem: str
    images: tuple[Digest, ...] = ()
    repaired: bool = False

    def __str__(self) -> str:
        of = f" (of {', '.join(self.images)})" if self.images else ""
        return f"{self.kind} {self.name}{of}: {self.problem}{'; removed' if self.repaired else ''}"


def check(store: Store, *, repair: bool = False) -> list[Damage]:
    """Verify the records, the digests of all content, and the trees against their archives.

    Args:
        store: The store to check.
        repair: Remove damaged content, so that the next pull or load of its image restores it. Damaged
            records are rebuilt from the content; names of images are lost then.
    """
    broken = store.database.damage()
    if broken is not None:
        damage = Damage(kind="records", name=store.database.path, problem=broken)
        if not repair:
            return [damage]
        return [evolve(damage, images=rebuild(store), repaired=True), *check(store, repair=True)]
    found = [*_permissions(store)]
    with store.leasing():
        for record in store.images():
            found += _image(store, record)
    found = [*_merged(found), *_snapshots(store)]
    return [_repaired(store, one) for one in found] if repair else found


def _snapshots(store: Store) -> Iterator[Damage]:
    for record in snapshot_layers.records(store):
        lost = snapshot_layers.missing(store, record)
        if lost is not None:
            yield Damage(kind="snapshot", name=record.id, problem=f"its layer {lost} is gone")


def _merged(found: list[Damage]) -> list[Damage]:
    """Merge faults that several images share."""
    merged: dict[tuple[str, str, str], Damage] = {}
    for one in found:
        key = one.kind, one.name, one.problem
        before = merged[key].images if key in merged else ()
        merged[key] = evolve(one, images=tuple(dict.fromkeys((*before, *one.images))))
    return list(merged.values())


def _permissions(store: Store) -> Iterator[Damage]:
    for path in (store.roots.data, store.blobs, store.layers, store.partial):
        try:
            found = os.stat(path, follow_symlinks=False)
        except OSError as error:
            yield Damage(kind="permissions", name=path, problem=str(error.strerror))
            continue
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            yield Damage(kind="permissions", name=path, problem="not a directory of this user")
        elif found.st_mode & 0o077:
            yield Damage(kind="permissions", name=path, problem=f"open to others: {found.st_mode & 0o777:o}")


def _image(store: Store, record: ImageRecord) -> Iterator[Damage]:
    images = (record.digest,)
    documents: tuple[Manifest, ImageConfig] | None = None
    for digest in (record.digest, record.config_digest):
        problem = blob_problem(store, digest, None)
        if problem is not None:
            yield Damage(kind="blob", name=digest, problem=problem, images=images)
            return
    try:
        documents = store.manifest(record.digest), store.config(record.config_digest)
    except ImageError as error:
        yield Damage(kind="image", name=record.digest, problem=str(error), images=images)
        return
    manifest, config = documents
    if store.parts(record.digest) != [
        (chain, layer.digest) for chain, layer in zip(config.chain_ids, manifest.layers, strict=False)
    ]:
        yield Damage(
            kind="image", name=record.digest, problem="its records do not match its layers", images=images
        )
    for at, layer in enumerate(manifest.layers):
        problem = blob_problem(store, layer.digest, layer.size)
        if problem is not None:
            yield Damage(kind="blob", name=layer.digest, problem=problem, images=images)
        problem = _tree_problem(store, config, at, layer.digest if problem is None else None)
        if problem is not None:
            yield Damage(kind="layer", name=config.chain_ids[at], problem=problem, images=images)


def _tree_problem(store: Store, config: ImageConfig, at: int, blob: Digest | None) -> str | None:
    """Compare a layer's tree with one that is unpacked again from its content."""
    chain = config.chain_ids[at]
    record = store.layer(chain)
    if record is None:
        return "is not unpacked"
    if blob is None:
        return None  # there is nothing to compare it with
    lowers = []
    for below in reversed(range(at)):
        lowers.append(store.layer_path(config.chain_ids[below]))
        known = store.layer(config.chain_ids[below])
        if known is None:
            return None  # reported as a fault of its own
        if known.root_opaque:
            break
    build = LayerBuild(store, config.diff_ids[at])
    try:
        feed_verified(store, blob, build)
        build.end()
        build.finish(lowers, functools.partial(feed_verified, store, blob))
        same = same_tree(store, store.layer_path(chain), build.tree)
        return None if same else "its files differ from its archive"
    except ImageError as error:
        return str(error)
    finally:
        build.abandon()


def _repaired(store: Store, damage: Damage) -> Damage:
    if damage.kind == "permissions":
        return damage
    if damage.kind == "snapshot":
        snapshot_layers.forget(store, damage.name)
    elif damage.kind == "image":
        store.remove_image(Digest(damage.name))
    elif damage.kind == "blob":
        path = store.blob_path(Digest(damage.name))
        if os.path.isdir(path) and not os.path.islink(path):
            _put_away(store, path)
        elif os.path.lexists(path):
            os.unlink(path)
        _forget_images_of_document(store, Digest(damage.name), damage.images)
    elif damage.kind == "layer" and not _forget_layer(store, Digest(damage.name)):
        return damage
    return evolve(damage, repaired=True)


def _forget_layer(store: Store, chain: Digest) -> bool:
    """Remove a layer that is not in use; return whether it was removed."""
    lock = os.path.join(store.partial, f"{chain.hex}.layer")
    if is_locked(lock):
        return False
    with exclusive(lock):
        with store.database.writing(durable=True) as records:
            if leases.sessions(records, "layer", chain):
                return False
            tables.remove_layer(records, chain)
        path = os.path.dirname(store.layer_path(chain))
        if os.path.lexists(path):
            _put_away(store, path)
    return True


def _put_away(store: Store, path: str) -> None:
    dead = f"dead-{os.urandom(8).hex()}"
    os.rename(path, os.path.join(store.owner.live, dead))
    discard(store, dead)


def _forget_images_of_document(store: Store, digest: Digest, images: tuple[Digest, ...]) -> None:
    """Remove the images whose manifest or configuration is lost: no other call could remove them."""
    for image in images:
        record = store.record(image)
        if record is not None and digest in (image, record.config_digest):
            store.remove_image(image)
