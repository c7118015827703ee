"""Images: their store, their layers, and the ways in and out."""
