"""Control groups: v1, v2 and both behind one face."""
