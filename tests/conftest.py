"""What every test runs under: uvloop, a guard of the loop, and no swallowed errors."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import structlog
import uvloop
from blockbuster import BlockBusterFunction, blockbuster_ctx

from tests import judges
from tests.doubles.loop import SimLoop

# File calls that blockbuster does not know and that this project makes: on a worker thread only.
DISK_CALLS = (
    "open",
    "fsync",
    "fdatasync",
    "ftruncate",
    "posix_fallocate",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "unlink",
)

PKI_CALLS = ("__init__", "context", "material", "write")
"""Of tests that make certificates while a node runs."""

_loop_errors: list[dict[str, Any]] = []


def _from_page_cache(*arguments: Any, **_options: Any) -> bool:
    """preadv with RWF_NOWAIT answers at once or not at all."""
    return len(arguments) > 3 and bool(arguments[3] & os.RWF_NOWAIT)


def pytest_configure() -> None:
    judges.extend_path()


def _telling_errors(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Any:
    loop = new_loop()
    loop.set_exception_handler(lambda _loop, context: _loop_errors.append(context))
    return loop


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], Any]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual_time": partial(_telling_errors, SimLoop)}
    return {"uvloop": partial(_telling_errors, uvloop.new_event_loop)}


@pytest.fixture(autouse=True)
def _no_blocking_on_the_loop() -> Iterator[None]:
    """A call that may wait for the disk fails the test if a loop runs in its thread."""
    disk = [
        BlockBusterFunction(
            os, name, scanned_modules="proglog", can_block_predicate=_from_page_cache
        ).activate()
        for name in DISK_CALLS
    ]
    try:
        with blockbuster_ctx("proglog") as known:
            for function in [*disk, *known.functions.values()]:
                # A first import reads files, wherever it stands, and happens once.
                function.can_block_in("<frozen importlib._bootstrap>", "_find_and_load")
                # Closing waits for the thread that has just answered that it is done.
                function.can_block_in("proglog/ports.py", "stop")
                # A file that is only in memory.
                function.can_block_in("proglog/auth/tls.py", "__enter__")
                function.can_block_in("tests/pki.py", PKI_CALLS)
            yield
    finally:
        for function in disk:
            function.deactivate()


@pytest.fixture(autouse=True)
def _logs_as_at_the_start() -> Iterator[None]:
    """Where log lines go belongs to the process. A test that sends them elsewhere, or silences
    them as the simulator does, must not hide them from the tests that happen to come after it."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


@pytest.fixture(autouse=True)
def _no_error_lost_in_the_loop() -> Iterator[None]:
    """What a callback or a forgotten task raises fails the test, instead of a line in a log."""
    _loop_errors.clear()
    yield
    errors, _loop_errors[:] = list(_loop_errors), []
    assert not errors, errors
