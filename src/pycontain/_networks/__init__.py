"""Networks of containers: what names mean on them, and who answers for them."""
