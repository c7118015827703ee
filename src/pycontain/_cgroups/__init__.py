"""Control groups of containers and execs, for v1, v2 and hybrid hosts."""
