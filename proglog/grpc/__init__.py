"""What grpclib and h2 lack."""
