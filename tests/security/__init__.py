"""The cases of the threat list, by id: what must not happen, and proof that the test would see it."""
