"""The gRPC service of a node, and the mux that shares its one port between protocols."""
