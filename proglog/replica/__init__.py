"""One replicated log: the log engine, consensus, and the state that committed batches build."""
