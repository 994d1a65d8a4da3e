"""The command line. Commands are imported when they are used: `proglog --help` stays quick."""

from __future__ import annotations

import sys


def main() -> int:
    """The `proglog` program. Returns its exit status: 0 done, 1 failed, 2 wrongly used."""
    if not __debug__:
        print("proglog: runs only with assertions on: without -O, PYTHONOPTIMIZE", file=sys.stderr)
        return 2
    from proglog.cli.app import run

    return run(sys.argv[1:])
