"""Registry of live containers: names, look-up, and a closed session."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pycontain._runtime.registry import Registry
from pycontain.errors import Conflict, NotFound, StateError


def _running(name: str, id: str = "0123456789abcdef") -> Any:
    return SimpleNamespace(spec=SimpleNamespace(name=name, id=id), handle=object())


def test_a_name_belongs_to_one_container_until_it_is_released() -> None:
    registry, first, second = Registry(), _running("db", "1" * 32).spec, _running("db", "2" * 32).spec
    registry.claim(first)
    registry.claim(first)
    with pytest.raises(Conflict, match="container name 'db' is already in use"):
        registry.claim(second)
    registry.release(second)
    with pytest.raises(Conflict):
        registry.claim(second)
    registry.release(first)
    registry.claim(second)


@pytest.mark.parametrize("name", ["db", "0123456789abcdef", "0123456789ab"])
def test_find_by_name_id_and_short_id(name: str) -> None:
    registry, running = Registry(), _running("db")
    registry.add(running)
    assert registry.find(name) is running
    with pytest.raises(NotFound, match="no running container 'other'"):
        registry.find("other")


def test_remove_keeps_a_successor_of_the_same_id() -> None:
    registry, first, second = Registry(), _running("db"), _running("db")
    registry.add(first)
    registry.add(second)
    registry.remove(first)
    assert registry.live() == [second]
    assert second.handle is not None
    registry.remove(second)
    assert (registry.live(), second.handle, len(registry)) == ([], None, 0)


def test_a_closed_registry_takes_no_container() -> None:
    registry = Registry()
    registry.closed = True
    with pytest.raises(StateError, match="closed"):
        registry.add(_running("db"))
    assert registry.live() == []
