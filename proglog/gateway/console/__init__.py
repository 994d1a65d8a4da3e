"""The console: a node's view for people, as one page that needs nothing from elsewhere."""
