"""Volumes: directories that outlive containers, and file systems of a given size."""
