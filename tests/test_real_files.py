"""The operating system's files, where it can be told from outside that they do what they say."""

from __future__ import annotations

import errno
import mmap
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proglog import limits
from proglog.ports import RealFiles
from tests.filesystems import has_page_cache


@pytest.fixture
def files() -> RealFiles:
    return RealFiles()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder on a tmpfs, which every Linux has there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # it is meant
        yield Path(folder)


def make(files: RealFiles, path: Path, data: bytes) -> Path:
    file = files.create(path)
    if data:
        file.pwritev([data], 0)
    file.fdatasync()
    file.close()
    return path


# --- the page cache ------------------------------------------------------------------------------


def bytes_from_disks() -> int:
    """What the kernel has fetched for this process."""
    found = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("size", [0, 1, 4096, 300_001, 5_000_000])
def test_the_cache_of_a_synced_file_is_let_go(files: RealFiles, tmp_path: Path, size: int) -> None:
    told = has_page_cache(tmp_path)
    data = os.urandom(size)
    file = files.open(make(files, tmp_path / "a", data))
    for _ in range(20):
        assert file.forget_cache() is (told or size == 0)
        before = bytes_from_disks()
        assert file.pread(size, 0) == data
        assert not told or bytes_from_disks() - before >= size
    file.close()


def test_space_that_is_only_reserved_can_be_let_go_too(files: RealFiles, tmp_path: Path) -> None:
    file = files.create(tmp_path / "a")
    file.reserve(1_000_000)
    file.pwritev([b"x"], 500_000)
    file.fdatasync()
    for _ in range(3):
        assert file.pread(1_000_000, 0).count(0) == 999_999
        assert file.forget_cache() is has_page_cache(tmp_path)
    file.close()


def test_a_page_that_is_in_use_stays_and_it_says_so(files: RealFiles, tmp_path: Path) -> None:
    path = make(files, tmp_path / "a", bytes(1_000_000))
    file = files.open(path, writable=False)
    with path.open("rb") as other, mmap.mmap(other.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[600_000] == 0
        assert not file.forget_cache()
    assert file.forget_cache() is has_page_cache(tmp_path)
    file.close()


def test_what_is_not_synced_is_never_lost(files: RealFiles, tmp_path: Path) -> None:
    file = files.create(tmp_path / "a")
    data = os.urandom(100_000)
    file.pwritev([data], 0)
    file.forget_cache()
    assert file.pread(100_000, 0) == data
    file.close()


def test_a_file_in_memory_cannot_be_read_anew(files: RealFiles, in_memory: Path) -> None:
    file = files.open(make(files, in_memory / "a", b"data"))
    assert not file.forget_cache()
    assert file.pread(4, 0) == b"data"
    file.close()


class Folios:
    """Stands in for a kernel on a disk that cannot read one byte: it reads 1 MiB at a time, unless
    it is told not to, and keeps in mind what failed. So did Linux 6.18 with ext4."""

    BYTES = 1 << 20

    def __init__(self, bad: int, patch: pytest.MonkeyPatch) -> None:
        self._bad = bad
        self._random = self._failed = False
        self._pread, self._advise = os.pread, os.posix_fadvise
        patch.setattr(os, "pread", self.pread)
        patch.setattr(os, "posix_fadvise", self.advise)

    def pread(self, descriptor: int, size: int, position: int) -> bytes:
        unit = 4096 if self._random and not self._failed else self.BYTES
        start, stop = position - position % unit, -(-(position + size) // unit) * unit
        if start <= self._bad < stop:
            self._failed = unit == self.BYTES
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._pread(descriptor, size, position)

    def advise(self, descriptor: int, start: int, size: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            self._failed = False
        else:
            self._random = advice == os.POSIX_FADV_RANDOM
        self._advise(descriptor, start, size, advice)


def test_a_block_that_cannot_be_read_fails_alone(
    files: RealFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(3 * Folios.BYTES)
    file = files.open(make(files, tmp_path / "a", data))
    bad = Folios.BYTES + 5 * 4096
    Folios(bad, monkeypatch)
    for _ in range(2):
        with pytest.raises(OSError):
            file.pread(len(data), 0)
        with pytest.raises(OSError):
            file.pread(4096, bad)
        assert file.pread(bad, 0) == data[:bad]
        assert file.pread(len(data), bad + 4096) == data[bad + 4096 :]
    file.close()


# --- locks ---------------------------------------------------------------------------------------

LOCK = """
import sys
from pathlib import Path
from proglog.ports import RealFiles
try:
    RealFiles().lock(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
except BlockingIOError:
    print("refused")
else:
    print("locked")
"""


def another_process(folder: Path, how: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", LOCK, folder, how], capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_a_folder_has_one_owner_and_no_file_to_remove(files: RealFiles, tmp_path: Path) -> None:
    unlock = files.lock(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert another_process(tmp_path, "alone") == another_process(tmp_path, "shared") == "refused"
    unlock()
    unlock = files.lock(tmp_path, shared=True)
    assert another_process(tmp_path, "alone") == "refused"
    assert another_process(tmp_path, "shared") == "locked"
    unlock()
    assert another_process(tmp_path, "alone") == "locked"


def test_only_a_folder_can_be_locked(files: RealFiles, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"")
    with pytest.raises(NotADirectoryError):
        files.lock(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        files.lock(tmp_path / "absent")


# --- descriptors ---------------------------------------------------------------------------------

SPARES = """
import os, resource, sys
from pathlib import Path
from proglog.ports import RealFiles

folder = Path(sys.argv[1])
files = RealFiles()
files.create(folder / "first").close()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
def take_all():
    try:
        while True:
            taken.append(os.open("/", os.O_RDONLY))
    except OSError:
        pass

def opened(act):
    count = 0
    try:
        while count < 40:
            held.append(act(count))
            count += 1
    except OSError as error:
        return f"{count} {error.strerror}"
    return "all"

held = []
take_all()
print(opened(lambda n: files.create(folder / str(n))))
for file in held:
    file.close()
held.clear()
os.close(taken.pop())
files.sync_directory(folder)  # It meets no limit, and takes the spares back.
take_all()
print(opened(lambda n: files.open(folder / "first", writable=False)))
for file in held:
    file.close()
files.refill_spares()
take_all()
print(bytes(files.read_only_map(folder / "full")))
files.lock(folder)
files.sync_directory(folder)
"""


def test_files_are_opened_where_connections_take_all_descriptors(
    files: RealFiles, tmp_path: Path
) -> None:
    make(files, tmp_path / "full", b"full")
    ran = subprocess.run(
        [sys.executable, "-c", SPARES, tmp_path], capture_output=True, text=True, check=False
    )
    spares = f"{limits.descriptors_spare} Too many open files"
    assert (ran.stdout.splitlines(), ran.stderr) == ([spares, spares, "b'full'"], "")


def test_a_file_opened_for_reading_takes_no_writes(files: RealFiles, tmp_path: Path) -> None:
    file = files.open(make(files, tmp_path / "a", b"data"), writable=False)
    acts: list[Callable[[], None]] = [
        lambda: file.pwritev([b"x"], 0),
        lambda: file.reserve(10),
        lambda: file.truncate(1),
    ]
    for act in acts:
        with pytest.raises(OSError):
            act()
    assert (file.pread(9, 0), files.size(tmp_path / "a")) == (b"data", 4)
    file.fdatasync()
    file.close()
