"""Networks of pycontain and dockerd compared: the same cases on both, each in its own network namespace."""
