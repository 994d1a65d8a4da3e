"""The few doors to the world: files, the disk's threads, the wall clock and chance.

Everything else (time, timers, sockets) is reached through the running asyncio loop. Each port has
its real implementation here and an in-memory double in `tests/doubles`, so that a whole node
runs in one simulated event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import resource
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from proglog import limits
from proglog.batch import Buffer

T = TypeVar("T")

TEMPORARY = ".tmp"
"""Ends the name of a file that is not renamed to its own yet; worthless."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_MAP_FAILED = ctypes.c_void_p(-1).value


class File(Protocol):
    """One open file. Positions and sizes are bytes. All methods raise OSError."""

    def pwritev(self, parts: Sequence[Buffer], position: int) -> None:
        """Writes all parts, back to back, at `position`."""

    def pread(self, size: int, position: int) -> bytes:
        """Reads up to `size` bytes; fewer only at the end of the file. May wait for the disk.

        A block that the disk cannot read is an error for whoever wants a byte of it, and nobody
        else.
        """

    def pread_cached(self, size: int, position: int) -> bytes | None:
        """Like `pread`, but None where that would wait for the disk."""

    def read_ahead(self, size: int, position: int) -> None:
        """Says that these bytes will be read next: the disk begins, and nobody waits for it."""

    def fdatasync(self) -> None:
        """Makes all that was written durable."""

    def forget_cache(self) -> bool:
        """Lets the page cache go of the whole file, so that the next read shows what the disk has.

        Dirty pages stay: sync first. False where that cannot be had or cannot be told: a page is
        mapped or in use elsewhere, the file system is one of memory (tmpfs) or of another kind.
        """

    def reserve(self, size: int) -> None:
        """Makes sure that writes below `size` need no new space. The file grows, with zeros."""

    def truncate(self, size: int) -> None: ...

    def size(self) -> int: ...

    def close(self) -> None: ...


class Files(Protocol):
    """A file system. A name is durable only after `sync_directory` of its folder."""

    def open(self, path: Path, *, writable: bool = True) -> File:
        """Opens an existing file, for reading alone if not `writable`. Raises FileNotFoundError."""

    def create(self, path: Path) -> File:
        """Creates a file that must not exist. Raises FileExistsError."""

    def read_only_map(self, path: Path) -> Buffer:
        """The whole file mapped; it must never change while mapped. Empty files give b"".

        Whoever touches a page of it that the disk cannot read is killed by SIGBUS.
        """

    def size(self, path: Path) -> int:
        """Bytes of an existing file. Raises FileNotFoundError."""

    def exists(self, path: Path) -> bool: ...

    def listdir(self, path: Path) -> list[str]:
        """Names in a folder, sorted."""

    def mkdir(self, path: Path) -> None:
        """Creates a folder and its parents where missing, durably."""

    def rename(self, old: Path, new: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None:
        """Makes creations, renames and deletions in a folder durable."""

    def lock(self, folder: Path, *, shared: bool = False) -> Callable[[], None]:
        """Locks a folder, against all other locks or, if `shared`, all that are not shared, and
        returns the release. It needs no write access. Raises BlockingIOError, FileNotFoundError."""


def write_whole(files: Files, path: Path, data: Buffer) -> None:
    """Replaces a file so that after a crash it is either the old one or the new one, whole.

    May wait for the disk. Raises OSError: then the old one stands.
    """
    write_parts(files, path, (data,))


def write_parts(files: Files, path: Path, parts: Iterable[Buffer]) -> None:
    """As `write_whole`, of what is not in memory at once: `parts` follow one another."""
    temporary = path.with_name(path.name + TEMPORARY)
    if files.exists(temporary):
        files.unlink(temporary)
    file = files.create(temporary)
    position = 0
    try:
        for part in parts:
            file.pwritev([part], position)
            position += len(part)
        file.fdatasync()
    except OSError:
        file.close()
        files.unlink(temporary)
        raise
    file.close()
    files.rename(temporary, path)
    files.sync_directory(path.parent)


class Worker(Protocol):
    """A place where work that may wait for the disk is done, one step at a time."""

    def start(self, step: Callable[[], None]) -> None:
        """From now on `step` runs once or more after each `wake`, never twice at a time."""

    def wake(self) -> None: ...

    def stop(self) -> None:
        """Runs what was woken to its end, then ends. Waits for it."""


class Clock(Protocol):
    """The wall clock, for timestamps that users see and never for timeouts; and a stopwatch.

    What waits or expires goes by `loop.time()`, which uvloop keeps in whole milliseconds.
    """

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""

    def stopwatch(self) -> float:
        """Seconds since some moment, to the microsecond: for measuring only."""


# --- the real world ------------------------------------------------------------------------------


MODE = 0o600
"""Of new files: records and gossip keys are for the user who runs the node."""

NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
"""The process, or the machine, has as many files open as it may. Nothing is wrong with the disk."""


def connections_max() -> int:
    """How many connections each of a node's two listeners may have open: as many as the process may
    have descriptors, less those that are kept for segments, peers and all else."""
    allowed, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(min(limits.connections_max, (allowed - limits.descriptors_reserved) // 2), 1)


class RealFile:
    """A file by its descriptor."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pwritev(self, parts: Sequence[Buffer], position: int) -> None:
        for start in range(0, len(parts), limits.write_parts_max):
            position = self._write(list(parts[start : start + limits.write_parts_max]), position)

    def _write(self, parts: list[Buffer], position: int) -> int:
        wanted = sum(map(len, parts))
        written = os.pwritev(self._descriptor, parts, position)
        if written == wanted:
            return position + wanted
        # A short write is no error to the kernel. The rest goes on its own, and then tells why.
        rest = memoryview(b"".join(parts))
        while written < wanted:
            more = os.pwrite(self._descriptor, rest[written:], position + written)
            if more == 0:
                raise OSError(errno.EIO, "the disk takes no more bytes")
            written += more
        return position + wanted

    def pread(self, size: int, position: int) -> bytes:
        try:
            return self._read(size, position)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        # The kernel reads folios of up to a MiB whole, and a block that the disk cannot read fails
        # all of its folio, for as long as that is in the cache. Read page by page, it fails alone.
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            return self._read(size, position)
        finally:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_NORMAL)

    def _read(self, size: int, position: int) -> bytes:
        data = os.pread(self._descriptor, size, position)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), position + len(data))
            if not more:
                break
            data += more
        return data

    def pread_cached(self, size: int, position: int) -> bytes | None:
        buffer = bytearray(size)
        try:
            count = os.preadv(self._descriptor, [buffer], position, os.RWF_NOWAIT)
        except OSError as error:
            # Not in the page cache, or a file system that cannot tell: the reader thread reads it.
            if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP}:
                return None
            raise
        return bytes(buffer) if count == size else None

    def read_ahead(self, size: int, position: int) -> None:
        os.posix_fadvise(self._descriptor, position, size, os.POSIX_FADV_WILLNEED)

    def fdatasync(self) -> None:
        os.fdatasync(self._descriptor)

    def forget_cache(self) -> bool:
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size = self.size()
        return size == 0 or (self._has_page_cache(size) and not _is_cached(self._descriptor, size))

    def _has_page_cache(self, size: int) -> bool:
        """Whether what the kernel says of the page cache is all there is: not on a file system
        with a cache of its own or none, which is what those that cannot "not wait" have."""
        try:
            # From the end on there is nothing to read, so nothing comes into the cache.
            os.preadv(self._descriptor, [bytearray(1)], size, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return False
            raise
        return True

    def reserve(self, size: int) -> None:
        os.posix_fallocate(self._descriptor, 0, size)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        # The number belongs to the next file that is opened: whoever uses this one gets EBADF.
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class _Mapped:
    """The first bytes of a file, mapped until nobody has the view any more.

    By hand: an object of `mmap` keeps a descriptor until Python 3.13, and a log has thousands of
    indexes; and it does not say where it is.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        start = _LIBC.mmap(
            None,
            ctypes.c_size_t(size),
            mmap.PROT_READ,
            mmap.MAP_SHARED,
            descriptor,
            ctypes.c_long(0),
        )
        if start == _MAP_FAILED:
            raise _libc_error()
        self.start = ctypes.c_void_p(start)
        self.size = ctypes.c_size_t(size)
        array = (ctypes.c_ubyte * size).from_address(start)
        weakref.finalize(array, _LIBC.munmap, self.start, self.size).atexit = False
        self.view = memoryview(array).cast("B").toreadonly()


def _is_cached(descriptor: int, size: int) -> bool:
    """Whether any page of the first `size` bytes is in the page cache. Reads nothing.

    A read that does not wait cannot tell: it brings in a page that the disk has no bytes for, of
    space that is only reserved, on the way. Where the kernel does not tell this user, it says yes.
    """
    mapped = _Mapped(descriptor, size)
    pages = bytearray(-(-size // mmap.PAGESIZE))
    found = (ctypes.c_char * len(pages)).from_buffer(pages)
    if _LIBC.mincore(mapped.start, mapped.size, found):
        raise _libc_error()
    return any(pages)


def _libc_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class RealFiles:
    """The operating system's files.

    The process holds a few descriptors in reserve. Connections may take all others, and a file that
    cannot be opened then is no reason to stop a node: `_spared` gives one of them up for it.
    """

    _spares: ClassVar[list[int]] = []
    _spares_lock: ClassVar[threading.Lock] = threading.Lock()
    """The writer's and the reader's threads open files."""

    def open(self, path: Path, *, writable: bool = True) -> File:
        return RealFile(self._open(path, os.O_RDWR if writable else os.O_RDONLY))

    def create(self, path: Path) -> File:
        return RealFile(self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))

    def _open(self, path: Path, flags: int) -> int:
        return self._spared(lambda: os.open(path, flags | os.O_CLOEXEC, MODE))

    def _spared(self, act: Callable[[], T]) -> T:
        """Does what needs a descriptor; where there is none left, with one of the spare ones."""
        while True:
            try:
                done = act()
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS or not self._give_up_spare():
                    raise
            else:
                self.refill_spares()
                return done

    def _give_up_spare(self) -> bool:
        with self._spares_lock:
            if self._spares:
                os.close(self._spares.pop())
                return True
        return False

    def refill_spares(self) -> None:
        """Takes as many spare descriptors as are missing, or as there are."""
        with self._spares_lock, contextlib.suppress(OSError):
            while len(self._spares) < limits.descriptors_spare:
                self._spares.append(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def read_only_map(self, path: Path) -> Buffer:
        descriptor = self._open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            return _Mapped(descriptor, size).view if size else b""
        finally:
            os.close(descriptor)

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def exists(self, path: Path) -> bool:
        return path.exists()

    def listdir(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def mkdir(self, path: Path) -> None:
        missing = [path]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                self.sync_directory(folder.parent)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        descriptor = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, folder: Path, *, shared: bool = False) -> Callable[[], None]:
        # The folder itself, not a file in it, which could be removed under a running process.
        descriptor = self._open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return lambda: os.close(descriptor)


class RealClock:
    """The operating system's wall clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def stopwatch(self) -> float:
        return time.perf_counter()


class ThreadWorker:
    """One thread. An exception that `step` lets out ends the process's thread loudly: steps report
    their failures themselves."""

    def __init__(self, name: str) -> None:
        self._name = name
        # A queue, since its C code hands over faster than an Event, and one that is short.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._woken = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, step: Callable[[], None]) -> None:
        assert self._thread is None, "a worker starts once"
        self._thread = threading.Thread(
            target=self._run, args=(step,), name=self._name, daemon=True
        )
        self._thread.start()

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._wakes.put(None)

    def stop(self) -> None:
        self._stopping = True
        self.wake()
        if self._thread is not None:
            self._thread.join()

    def _run(self, step: Callable[[], None]) -> None:
        _sharpen_timers()
        stopping = False
        while not stopping:
            self._wakes.get()
            self._woken = False  # Before the step, which may overlook what comes from now on.
            # Read before the step: what was woken before `stop` is still done.
            stopping = self._stopping
            step()


class Offload:
    """Runs functions on a worker, one after the other, for tasks that wait for their results.

    A function that was begun is finished even if its task is cancelled; `after` runs on the loop
    once it is, whoever still waits.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Offloaded] = deque()
        worker.start(self._step)

    async def run(self, work: Callable[[], T], after: Callable[[], None] | None = None) -> T:
        """The result of `work`; raises what it raises."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._queue.append(_Offloaded(work, done, after))
        self._worker.wake()
        return await done

    def stop(self) -> None:
        """Finishes what was begun and ends the worker. Waits for it."""
        self._worker.stop()

    def _step(self) -> None:
        while self._queue:
            offloaded = self._queue.popleft()
            result: object = None
            error: BaseException | None = None
            try:
                result = offloaded.work()
            except BaseException as raised:  # noqa: BLE001  # it is raised where it is awaited
                error = raised
            self._loop.call_soon_threadsafe(self._report, offloaded, result, error)

    def _report(self, offloaded: _Offloaded, result: object, error: BaseException | None) -> None:
        if offloaded.after is not None:
            offloaded.after()
        if offloaded.done.done():
            return
        if error is None:
            offloaded.done.set_result(result)
        else:
            offloaded.done.set_exception(error)


class _Offloaded(NamedTuple):
    work: Callable[[], object]
    done: asyncio.Future[Any]
    after: Callable[[], None] | None


def _sharpen_timers() -> None:
    """Lets this thread ask for the interpreter lock after microseconds rather than milliseconds.

    Beside a busy event loop a thread waits for the lock in sleeps of the switch interval, and each
    release by the loop restarts them; with the kernel's default timer slack of 50 us it can starve
    for 100 ms. `proglog.agent` sets the switch interval; the slack belongs to the thread.
    """
    _prctl(29, 1)  # PR_SET_TIMERSLACK


def stop_with_parent() -> None:
    """In a child before it begins: it gets SIGTERM when its parent ends, be it by kill -9."""
    _prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def keep_memory_private() -> None:
    """No core dump of this process, whatever takes them, and no look into it by others of its user:
    it holds keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(4, 0)  # PR_SET_DUMPABLE


def _prctl(option: int, argument: int) -> None:
    _LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """One set of doors. The default is the real world."""

    files: Files = field(default_factory=RealFiles)
    clock: Clock = field(default_factory=RealClock)
    random: random.Random = field(default_factory=random.SystemRandom)
    worker: Callable[[str], Worker] = ThreadWorker
