"""What tests judge by that Python's packages do not bring: other programs, rights, a network.

`scripts/judges.sh` gets the programs. A test that needs what cannot be had is left out, and pytest
says so at its end; in CI (PROGLOG_ALL_JUDGES) it fails, but for programs that Debian may not have
today.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

FOLDER = Path(sys.prefix) / "judges"
# CI does without any other program where it cannot be had.
ALWAYS = frozenset({"curl", "redis-server", "serf"})


def extend_path() -> None:
    """What is installed here goes before what was fetched for the tests."""
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:{FOLDER}/bin"


def program(name: str) -> str:
    """Its path."""
    if found := shutil.which(name):
        return found
    why = FOLDER / f"{name}.why"
    elsewhere = f"it is neither on the PATH nor in {FOLDER}"
    why = why.read_text() if why.exists() else elsewhere
    leave_out(f"{name} is missing", why, always=name in ALWAYS)


def leave_out(what: str, why: object, *, always: bool = True) -> NoReturn:
    """Ends a test that has nothing to judge by; `always`: which CI must have."""
    message = f"{what}: {' '.join(str(why).split())}"
    if always and os.environ.get("PROGLOG_ALL_JUDGES"):
        pytest.fail(message)
    pytest.skip(message)
