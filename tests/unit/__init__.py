"""Tests without privileges, in milliseconds."""
