"""Public classes and functions of pycontain."""
