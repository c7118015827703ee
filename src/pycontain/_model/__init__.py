"""Values that users and rooms share; no I/O here."""
