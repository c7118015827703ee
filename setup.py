"""Everything about the package stands in pyproject.toml; cffi's hook needs this call."""

from setuptools import setup

setup(cffi_modules=["src/_native/ext/build_ffi.py:ffi"])
