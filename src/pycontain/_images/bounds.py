"""How much an image may be: strangers write them."""

from __future__ import annotations

from attrs import field, frozen

from pycontain._model.sizes import parse_size
from pycontain.errors import LimitError

RATIO_FROM = 256 << 20
"""Bytes up to which no ratio is asked for."""


def _positive(_: object, attribute: object, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LimitError(f"{getattr(attribute, 'name', 'a bound')} is a number of at least 1, not {value!r}")


@frozen(kw_only=True)
class LayerLimits:
    """What one layer may hold at most.  Raises LimitError for values that cannot be meant.

    size: bytes of its unpacked archive.  entries: files, directories and links.  ratio: unpacked bytes for
    one compressed byte, asked of what is larger than 256 MiB.
    """

    size: int = field(default=64 << 30, converter=parse_size)
    entries: int = field(default=2_000_000, validator=_positive)
    ratio: int = field(default=250, validator=_positive)
