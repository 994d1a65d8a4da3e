"""The pytest plugin: fixtures, and nothing that a run of tests without them would notice.

Fixtures are plain functions. `proglog_log` is not entered: the test does that on its own loop, so
that any plugin for async tests will do, and none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import proglog
    from proglog.testing import Cluster, Node

# Every run of tests of every project loads this file: what it needs is imported where it is used.


@pytest.fixture
def proglog_log() -> Iterator[proglog.Log]:
    """A log in this process, empty and its own: `async with proglog_log as log`."""
    from proglog.testing import small_log

    with small_log() as log:
        yield log


@pytest.fixture(scope="session")
def proglog_node() -> Iterator[Node]:
    """One node, for all tests of a run: `proglog.connect(proglog_node.url)`."""
    import shutil

    from proglog.testing import Node, temporary_folder

    folder = temporary_folder()
    try:
        with Node(folder, options=["--bootstrap"]) as node:
            yield node
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _proglog_nodes() -> Iterator[Cluster]:
    from proglog.testing import Cluster

    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def proglog_cluster(_proglog_nodes: Cluster) -> Cluster:
    """Three nodes, for all tests of a run, each of which finds them whole."""
    _proglog_nodes.heal()
    return _proglog_nodes
