"""Limits on the size of untrusted images."""

from __future__ import annotations

from attrs import field, frozen

from pycontain._model.sizes import parse_size
from pycontain.errors import LimitError

RATIO_FROM = 256 << 20
"""Unpacked bytes up to which the compression ratio is not limited."""


def _positive(_: object, attribute: object, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LimitError(f"{getattr(attribute, 'name', 'limit')} must be an integer >= 1, got {value!r}")


@frozen(kw_only=True)
class LayerLimits:
    """Limits on one layer.

    Attributes:
        size: Largest size of the unpacked archive in bytes.
        entries: Largest number of files, directories and links.
        ratio: Largest number of unpacked bytes per compressed byte, for archives above 256 MiB.

    Raises:
        LimitError: A value is not a positive number.
    """

    size: int = field(default=64 << 30, converter=parse_size)
    entries: int = field(default=2_000_000, validator=_positive)
    ratio: int = field(default=250, validator=_positive)
