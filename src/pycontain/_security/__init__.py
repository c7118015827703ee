"""Walls inside the container: filters, capabilities, Landlock."""
