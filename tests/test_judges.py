"""A test that has nothing to judge by says so, and in CI it fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import judges

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "judges.sh"
NAMES = ("curl", "redis-server", "serf")
TOOLS = ("sh", "mkdir", "rm", "id", "cut", "tr", "chmod")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has no judges and no apt-get."""
    path = tmp_path / "bin"
    path.mkdir()
    for tool in TOOLS:
        (path / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(judges, "FOLDER", tmp_path / "judges")
    return path


def get(*names: str) -> None:
    subprocess.run([SCRIPT, judges.FOLDER, *names], check=True, capture_output=True)


def test_what_cannot_be_had_is_left_out_with_its_reason(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(*NAMES)
    monkeypatch.delenv("PROGLOG_ALL_JUDGES", raising=False)
    for name in NAMES:
        with pytest.raises(pytest.skip.Exception, match=f"{name} is missing: apt-get, which would"):
            judges.program(name)


def test_in_ci_a_missing_judge_is_a_failure(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROGLOG_ALL_JUDGES", "1")
    with pytest.raises(pytest.fail.Exception, match="serf is missing: it is neither on the PATH"):
        judges.program("serf")


def test_ci_does_without_a_program_that_debian_may_not_have(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROGLOG_ALL_JUDGES", "1")
    with pytest.raises(pytest.skip.Exception, match="cfssl is missing"):
        judges.program("cfssl")


def test_what_is_installed_is_used_as_it_is(bare: Path) -> None:
    (bare / "serf").symlink_to(bare / "sh")
    get("serf")
    assert judges.program("serf") == str(bare / "serf")
    assert not (judges.FOLDER / "serf.why").exists()
