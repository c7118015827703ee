"""Settings of the unit tests."""

from __future__ import annotations

from hypothesis import settings

# Time depends on the load of the machine, which is no property of the code.
settings.register_profile("pycontain", deadline=None)
settings.load_profile("pycontain")
