"""Tests of pycontain._security."""
