"""While nothing fails, the simulated files behave exactly as the operating system's."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proglog.ports import File, Files, RealFiles
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFiles
from tests.filesystems import has_page_cache

names = st.sampled_from(["a", "b", "c", "folder/a"])
positions = st.integers(0, 9000)
handles = st.integers(0, 3)


def outcome(act: object) -> object:
    """What a call gives: its value or its error, without the error's words."""
    try:
        value = act()  # type: ignore[operator]
    except OSError as error:
        return (type(error), error.errno)
    return bytes(value) if isinstance(value, memoryview) else value


class FilesModel(RuleBasedStateMachine):
    """Does everything twice."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.root = Path(self.temporary.name)
        self.real = RealFiles()
        self.told = has_page_cache(self.root)
        self.sim = SimFiles(SimDisk())
        self.sim.mkdir(self.root)
        self.open: list[tuple[File, File]] = []
        self.locks: list[tuple[object, object]] = []

    def teardown(self) -> None:
        for real, _ in self.open:
            real.close()
        for real, _ in self.locks:
            real()  # type: ignore[operator]
        self.temporary.cleanup()

    def both(self, act: object) -> object:
        real, sim = (outcome(lambda f=files: act(f)) for files in (self.real, self.sim))  # type: ignore[operator,misc]
        assert real == sim
        return real

    def on_file(self, handle: int, act: object) -> None:
        if handle < len(self.open):
            real, sim = (outcome(lambda f=file: act(f)) for file in self.open[handle])  # type: ignore[operator,misc]
            assert real == sim

    def get(self, how: str, name: str, **options: bool) -> None:
        got: list[File] = []

        def act(files: Files) -> None:
            got.append(getattr(files, how)(self.root / name, **options))

        self.both(act)
        if got:
            self.open.append((got[0], got[1]))
        if len(self.open) > 4:
            for file in self.open.pop(0):
                file.close()

    @rule(name=names)
    def create(self, name: str) -> None:
        self.get("create", name)

    @rule(name=names, writable=st.booleans())
    def open_file(self, name: str, writable: bool) -> None:
        self.get("open", name, writable=writable)

    @rule(handle=handles, parts=st.lists(st.binary(max_size=600), max_size=4), position=positions)
    def write(self, handle: int, parts: list[bytes], position: int) -> None:
        self.on_file(handle, lambda file: file.pwritev(parts, position))

    @rule(handle=handles, size=positions, position=positions)
    def read(self, handle: int, size: int, position: int) -> None:
        self.on_file(handle, lambda file: file.pread(size, position))

    @rule(handle=handles, size=positions, position=positions)
    def read_cached(self, handle: int, size: int, position: int) -> None:
        if handle < len(self.open):
            real, sim = (file.pread_cached(size, position) for file in self.open[handle])
            # What is in the cache is for the kernel to say.
            assert real is None or sim is None or real == sim

    @rule(handle=handles, size=positions)
    def reserve(self, handle: int, size: int) -> None:
        self.on_file(handle, lambda file: file.reserve(size))

    @rule(handle=handles, size=positions)
    def truncate(self, handle: int, size: int) -> None:
        self.on_file(handle, lambda file: file.truncate(size))

    @rule(handle=handles)
    def sync(self, handle: int) -> None:
        self.on_file(handle, lambda file: file.fdatasync())

    @rule(handle=handles)
    def size(self, handle: int) -> None:
        self.on_file(handle, lambda file: file.size())

    @rule(handle=handles, synced=st.booleans())
    def forget_cache(self, handle: int, synced: bool) -> None:
        if handle < len(self.open):
            real, sim = self.open[handle]
            if synced:
                real.fdatasync()
                sim.fdatasync()
            forgot = real.forget_cache()
            # The kernel may have written what is dirty there, and then let go of more.
            assert not sim.forget_cache() or forgot is self.told or real.size() == 0

    @rule(name=names)
    def size_of(self, name: str) -> None:
        self.both(lambda files: files.size(self.root / name))

    @rule(name=names)
    def exists(self, name: str) -> None:
        self.both(lambda files: files.exists(self.root / name))

    @rule(name=names)
    def unlink(self, name: str) -> None:
        self.both(lambda files: files.unlink(self.root / name))

    @rule(old=names, new=names)
    def rename(self, old: str, new: str) -> None:
        if (self.root / old).parent == (self.root / new).parent:
            self.both(lambda files: files.rename(self.root / old, self.root / new))

    @rule(name=names)
    def map(self, name: str) -> None:
        self.both(lambda files: files.read_only_map(self.root / name))

    @rule()
    def make_folder(self) -> None:
        self.both(lambda files: files.mkdir(self.root / "folder" / "deep"))

    @rule(name=st.sampled_from(["", "folder", "absent"]))
    def sync_directory(self, name: str) -> None:
        self.both(lambda files: files.sync_directory(self.root / name))

    @rule(name=st.sampled_from(["", "folder", "absent"]), shared=st.booleans())
    def lock(self, name: str, shared: bool) -> None:
        got: list[object] = []

        def act(files: Files) -> None:
            got.append(files.lock(self.root / name, shared=shared))

        self.both(act)
        if got:
            self.locks.append((got[0], got[1]))

    @rule()
    def release(self) -> None:
        for release in self.locks.pop(0) if self.locks else ():
            release()  # type: ignore[operator]

    @invariant()
    def same_listing(self) -> None:
        for name in ("", "folder", "absent"):
            self.both(lambda files, name=name: files.listdir(self.root / name))  # type: ignore[misc]


FilesModel.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_files_behave_as_the_real_ones = FilesModel.TestCase
