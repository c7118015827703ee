"""Diffs of layers, from the archives that the packer makes of them."""

from __future__ import annotations

import io
import tarfile

from pycontain._model.change import Change
from pycontain._objects import commit


def _archive(*names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name in names:
            made.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def _found(*layers: tuple[str, ...]) -> list[str]:
    found: dict[str, Change] = {}
    for names in layers:
        commit._take(found, sorted(found), iter([_archive(*names)]), [])
    return sorted(found)


def test_whiteout_hides_entries_of_earlier_layers() -> None:
    first = ("a", "a/b", "a/b/c", "a-b", "ab")
    assert _found(first, (".wh.a",)) == ["a-b", "ab"]
    assert _found(first, ("a", "a/.wh.b")) == ["a", "a-b", "ab"]


def test_opaque_directory_keeps_entries_of_its_own_layer() -> None:
    first = ("a", "a/b", "a/c", "b")
    assert _found(first, ("a", "a/new", "a/.wh..wh..opq")) == ["a", "a/new", "b"]


def test_entries_that_were_read_are_not_kept() -> None:
    kept = []
    opened = tarfile.TarFile.next

    def counted(self: tarfile.TarFile) -> tarfile.TarInfo | None:
        kept.append(len(vars(self)["members"]))
        return opened(self)

    tarfile.TarFile.next = counted  # type: ignore[method-assign]
    try:
        assert len(_found(tuple(f"f{one}" for one in range(500)))) == 500
    finally:
        tarfile.TarFile.next = opened  # type: ignore[method-assign]
    assert max(kept) <= 1
