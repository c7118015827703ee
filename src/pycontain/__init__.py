"""A container engine inside your Python process."""
