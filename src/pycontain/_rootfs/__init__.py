"""What a container sees as its root."""
