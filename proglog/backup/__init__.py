"""A copy of a log in a directory or an object store, and a new cluster out of it."""
