"""Kernel messages of networks: rtnetlink, nf_tables and traffic control."""
