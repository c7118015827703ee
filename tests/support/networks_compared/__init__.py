"""pycontain's networks beside dockerd's: the same cases on both, each in a network namespace of its own."""
