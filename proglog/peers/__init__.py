"""The connections between nodes, one manager a node: DESIGN.md says what is where."""
