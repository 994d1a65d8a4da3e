"""The messages of memberlist and Serf as bytes, and their encryption."""
