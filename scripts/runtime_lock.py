"""Cuts two locks out of requirements.lock: what the image runs with, and what builds the wheel.

    python scripts/runtime_lock.py [--check]

requirements.lock says of each package what it is there for ("via"), so the closure of the project's
own dependencies, without those of its groups, can be read off it, hashes and all: nothing is
resolved again, and no index is asked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHOLE = ROOT / "requirements.lock"
PROJECT = "proglog (pyproject.toml)"
CUTS = {"requirements-runtime.lock": PROJECT, "requirements-build.lock": "hatchling"}
"""Files, and whose closure each is."""
_ENTRY = re.compile(r"^([a-z0-9][a-z0-9.-]*)==.*\n(?:[ \t].*\n)*", re.MULTILINE)
_VIA = re.compile(r"^    # via (.+)$|^    #   (.+)$", re.MULTILINE)


def entries(text: str) -> dict[str, str]:
    """Each package with its lines."""
    return {match[1]: match[0] for match in _ENTRY.finditer(text)}


def _wanted_by(entry: str) -> set[str]:
    return {first or other for first, other in _VIA.findall(entry)}


def closure(packages: dict[str, str], root: str) -> Iterator[str]:
    """The entries of the root, if it is a package, and of all that is there for it."""
    found = {root}
    while more := {
        name for name, entry in packages.items() if name not in found and _wanted_by(entry) & found
    }:
        found |= more
    for name, entry in packages.items():
        if name in found:
            yield entry


def cuts() -> dict[Path, str]:
    """Each file with what belongs in it."""
    packages = entries(WHOLE.read_text())
    return {ROOT / name: "".join(closure(packages, root)) for name, root in CUTS.items()}


def main() -> int:
    stale = [
        path.name
        for path, text in cuts().items()
        if "--check" in sys.argv and (not path.exists() or path.read_text() != text)
    ]
    if stale:
        print(f"{', '.join(stale)}: not as requirements.lock says; run make lock", file=sys.stderr)
        return 1
    if "--check" not in sys.argv:
        for path, text in cuts().items():
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
