"""Starts the parts of a node in order, supervises them, and stops them in reverse."""
