"""Tests of pycontain, in the rooms of the package."""
