"""The image itself: who it runs as, what it may do, how it stops, how large it is."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.pods.driver import USER, Cluster, Podman, until

BYTES_MAX = 320 * 2**20
SERVE = ("serve", "--bind-addr=[::]:8401", "--advertise-addr=localhost", "--allow-plaintext")


@pytest.fixture(scope="module")
def podman() -> Podman:
    return Podman()


@pytest.fixture
def image() -> str:
    return Cluster.image.fget(Cluster)  # type: ignore[attr-defined, misc]


@contextlib.contextmanager
def container(podman: Podman, image: str, *words: str) -> Iterator[str]:
    name = f"proglog-test-{uuid.uuid4().hex[:8]}"
    podman("run", "-d", "--name", name, "--read-only", "--read-only-tmpfs=false",
           "--cap-drop=all", "--security-opt=no-new-privileges", "-v", f"{name}:/var/lib/proglog",
           image, *words)  # fmt: skip
    try:
        yield name
    finally:
        podman("rm", "-f", "-t", "0", name)
        podman("volume", "rm", "-f", name)


def test_what_is_in_it(podman: Podman, image: str) -> None:
    (found,) = json.loads(podman("image", "inspect", image))
    config = found["Config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["proglog"]
    assert config["StopSignal"] == "SIGTERM"
    assert "Volumes" not in config
    # Nothing of who built it.
    names = {variable.partition("=")[0] for variable in config["Env"]}
    assert not {
        name for name in names if "CERT" in name or "PIP" in name or "PROXY" in name.upper()
    }
    assert "PYTHONOPTIMIZE" not in names
    labels = found["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.revision"] != "unknown"
    assert found["Size"] < BYTES_MAX


def test_nothing_in_it_takes_anothers_rights(podman: Podman, image: str) -> None:
    find = ("find", "/", "-xdev", "-perm", "/6000", "-type", "f")
    assert podman("run", "--rm", "--user=0", "--entrypoint", find[0], image, *find[1:]) == ""
    assert (
        podman("run", "--rm", "--entrypoint", "sh", image, "-c", "ls /opt/proglog/bin/pip*; true")
        == ""
    )


def test_it_runs_with_no_right_at_all_and_stops_at_once(podman: Podman, image: str) -> None:
    with container(podman, image, *SERVE) as name:
        until(lambda: '"event":"started"' in podman.run("logs", name).stderr, "it serves")
        assert "drained" in podman("exec", name, "proglog", "drain", "--wait-unready=0s")
        podman("stop", "-t", "60", name)
        assert podman("inspect", "--format", "{{.State.ExitCode}}", name) == "0"


@pytest.mark.parametrize("after", [0.02, 0.2, 0.5])
def test_a_stop_that_comes_before_it_serves_is_heard(
    podman: Podman, image: str, after: float
) -> None:
    """The kernel drops SIGTERM for the first process of a container that has no handler."""
    with container(podman, image, *SERVE) as name:
        time.sleep(after)
        podman("stop", "-t", "60", name)
        # 137 would say that it had to be killed.
        assert podman("inspect", "--format", "{{.State.ExitCode}}", name) in {"0", "143"}


def test_a_setting_that_cannot_work_is_said_and_is_no_reason_to_start_again(
    podman: Podman, image: str
) -> None:
    with container(podman, image, "serve", "--bind-addr=[::]:8401") as name:
        assert podman("wait", name) == "2"
        assert "advertise-addr" in podman.run("logs", name).stderr
