"""The log engine: batches in mmap-indexed segments, one writer, and recovery. See DESIGN.md."""
