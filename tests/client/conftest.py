"""What the tests of the client share: a log over a fake backend, and a server over sockets."""

from __future__ import annotations

import pytest

from proglog.client.client import Log
from tests.client.fake import FakeBackend
from tests.client.server import serving


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def log(backend):
    async with Log(backend, timeout_seconds=5) as log:
        yield log


@pytest.fixture
async def server():
    async with serving() as server:
        yield server
