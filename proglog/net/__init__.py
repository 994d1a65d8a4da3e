"""Addresses, and how a connection to one is made."""
