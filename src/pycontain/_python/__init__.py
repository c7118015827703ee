"""Calls of Python functions in containers: encoding, the fork server inside, and its host side."""
