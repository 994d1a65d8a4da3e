"""A file whose blocks can be made to fail: the backing of a loop device. A process of its own.

It speaks the kernel's FUSE protocol (linux/fuse.h) as far as a file system needs it that is nothing
but one file. The bytes are in memory and end with the process, which ends with its parent: then the
kernel fails all I/O, and whoever waits for some is released.

    python faulty.py DESCRIPTOR BYTES

DESCRIPTOR is that of /dev/fuse, with which the parent has mounted the file. This process must not
see the mounts: if they ended with it, it would wait, at its own end, for what it no longer writes.

Each line of stdin is what fails from now on, {"reads": [[start, end], ...], "writes": [...]}; it is
answered by how many requests failed so far, {"reads": 3, "writes": 0}.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import stat
import struct
import sys

BLOCK = 4096
WRITE_BYTES_MAX = 1024 * 1024

GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = (
    *(3, 4, 14, 15, 16, 17, 18, 20, 25, 26),
)
UNANSWERED = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
IN = struct.Struct("=IIQQIIIHH")
OUT = struct.Struct("=IiQ")
ATTRIBUTES = struct.Struct("=QII QQQQQQIIIIIIIIII")
INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
MAX_PAGES = 1 << 22
DIRECT_IO = 1  # Nothing of the file is cached: what fails here fails up there.
PR_SET_IO_FLUSHER = 57


class Faults:
    """Blocks that fail. As on a disk, what is written anew is read again."""

    def __init__(self) -> None:
        self._failing: dict[str, set[int]] = {"reads": set(), "writes": set()}
        self.met = {"reads": 0, "writes": 0}

    def change(self, ranges: dict[str, list[list[int]]]) -> None:
        for kind, failing in self._failing.items():
            failing.clear()
            for start, end in ranges[kind]:
                failing.update(range(start // BLOCK, -(-end // BLOCK)))

    def read_fails(self, offset: int, size: int) -> bool:
        fails = not self._failing["reads"].isdisjoint(_blocks(offset, size))
        self.met["reads"] += fails
        return fails

    def write(self, file: int, offset: int, data: memoryview) -> bool:
        """Writes what can be written; whether that is all."""
        blocks = _blocks(offset, len(data))
        failing = self._failing["writes"].intersection(blocks)
        for block in blocks:
            if block in failing:
                continue
            start, end = max(block * BLOCK, offset), min((block + 1) * BLOCK, offset + len(data))
            os.pwrite(file, data[start - offset : end - offset], start)
            self._failing["reads"].discard(block)
        self.met["writes"] += bool(failing)
        return not failing


def _blocks(offset: int, size: int) -> range:
    return range(offset // BLOCK, -(-(offset + size) // BLOCK))


class File:
    def __init__(self, size: int, faults: Faults) -> None:
        self._size = size
        self._faults = faults
        self._file = os.memfd_create("disk")
        os.truncate(self._file, size)

    def answer(self, opcode: int, body: memoryview) -> bytes:
        """Raises OSError for what the kernel is to hear."""
        if opcode == READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            if self._faults.read_fails(offset, size):
                raise OSError(errno.EIO, "")
            return os.pread(self._file, size, offset)
        if opcode == WRITE:
            _, offset, size = struct.unpack_from("=QQI", body)
            if not self._faults.write(self._file, offset, body[40 : 40 + size]):
                raise OSError(errno.EIO, "")
            return struct.pack("=II", size, 0)
        if opcode in (GETATTR, SETATTR):
            mode, blocks = stat.S_IFREG | 0o600, self._size // 512
            times = (0,) * 6
            return ATTRIBUTES.pack(
                1, 0, 0, 1, self._size, blocks, *times, mode, 1, 0, 0, 0, BLOCK, 0
            )
        if opcode == OPEN:
            return struct.pack("=QII", 0, DIRECT_IO, 0)
        if opcode == INIT:
            pages = WRITE_BYTES_MAX // BLOCK
            return INIT_OUT.pack(7, 31, 0, MAX_PAGES, 64, 48, WRITE_BYTES_MAX, 1, pages, 0, 0, 0)
        if opcode in (RELEASE, FSYNC, FLUSH):
            return b""
        raise OSError(errno.ENOSYS, "")


def serve(device: int, file: File, faults: Faults) -> None:
    """Until it is unmounted, or the parent has ended."""
    poll = select.poll()
    poll.register(device, select.POLLIN)
    poll.register(sys.stdin, select.POLLIN)
    buffer = bytearray(WRITE_BYTES_MAX + BLOCK)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if sys.stdin.fileno() in ready:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return
            faults.change(json.loads(line))
            print(json.dumps(faults.met), flush=True)
        if device in ready:
            try:
                size = os.readv(device, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue  # interrupted: the request is gone
            _serve_one(device, file, memoryview(buffer)[:size])


def _serve_one(device: int, file: File, request: memoryview) -> None:
    _, opcode, unique, *_ = IN.unpack_from(request)
    if opcode in UNANSWERED:
        return
    failure, body = 0, b""
    try:
        body = file.answer(opcode, request[IN.size :])
    except OSError as error:
        failure = error.errno
    os.writev(device, [OUT.pack(OUT.size + len(body), -failure, unique), body])


def main(device: int, size: int) -> None:
    # Must not wait, for memory, until dirty pages are written: perhaps through this process.
    ctypes.CDLL(None).prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    faults = Faults()
    serve(device, File(size, faults), faults)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
