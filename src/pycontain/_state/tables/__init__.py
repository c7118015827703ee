"""The SQL of the store's records, one module per subject."""
