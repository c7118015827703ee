"""The bytes of a stream that `communicate` and buffered streams keep."""

from __future__ import annotations

import os

import pytest

from pycontain._objects import exchange
from pycontain._objects.buffered import StreamBuffer
from pycontain._objects.exchange import Exchange, open_stream


def test_single_bytes_are_joined() -> None:
    read, write = os.pipe()
    stream = open_stream(read, True, None)
    exchange = Exchange(None, [stream], False, b"", None)
    try:
        for at in range(5000):
            os.write(write, b"%d" % (at % 10))
            assert not exchange._fetch(stream)
        assert len(exchange._parts[stream]) < 1010
    finally:
        os.close(write)
        stream.close()
    assert exchange.read(stream) == b"".join(b"%d" % (at % 10) for at in range(5000))


def test_single_bytes_that_are_kept_are_joined() -> None:
    read, write = os.pipe()
    kept = StreamBuffer(read, 3000)
    try:
        for at in range(5000):
            os.write(write, b"%d" % (at % 10))
            assert kept.fetch()
        assert len(kept._chunks) <= 2
    finally:
        os.close(write)
        kept.finish()
    found = b""
    while chunk := kept.take(1000, wait=False):
        found += chunk
    assert found == b"".join(b"%d" % (at % 10) for at in range(2000, 5000))
    assert kept.dropped == 2000


@pytest.mark.parametrize("codec", [None, ("utf-8", "replace")])
def test_a_line_that_does_not_end_comes_in_pieces(
    codec: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "LONGEST_LINE", 1000)
    source, sink = os.pipe()
    os.write(sink, b"x" * 2500 + b"\nshort\nlast")
    os.close(sink)
    with exchange.open_stream(source, True, codec) as stream:
        first = stream.readline()
        lengths = [len(first), *map(len, stream)]
    assert lengths == [1000, 1000, 501, 6, 4]
