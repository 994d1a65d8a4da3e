"""In-memory doubles of the ports, so that a whole node runs in one simulated event loop.

They are as hostile as the real world may be, and deterministic: one seed, one run. `disk`, `inode`
and `crash` are the file system, its page cache and what a power cut leaves of them, `worker` the
disk's threads, `loop` virtual time, `network` the streams and datagrams between simulated hosts.
"""
