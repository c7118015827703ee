"""The nouns that users hold."""
