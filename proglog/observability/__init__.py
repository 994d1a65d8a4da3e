"""What a node tells of itself: log lines and metrics."""
