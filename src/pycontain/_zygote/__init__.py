"""Calls of Python functions: what travels in, what comes back, and the program that forks inside."""
