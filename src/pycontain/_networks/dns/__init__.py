"""The name service of containers."""
