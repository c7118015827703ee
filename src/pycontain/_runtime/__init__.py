"""A configuration becomes processes."""
