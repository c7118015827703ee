"""Registries: HTTP, credentials, and the OCI distribution protocol."""
