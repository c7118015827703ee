"""Fast tests that need no privileges."""
