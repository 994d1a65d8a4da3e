"""The command line. Commands are imported when they are used: `proglog --help` stays quick."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


def main() -> int:
    """The `proglog` program. Returns its exit status: 0 done, 1 failed, 2 wrongly used, 3 where the
    data are of another version."""
    try:
        return _main()
    except KeyboardInterrupt:
        return INTERRUPTED


def _main() -> int:
    import signal

    # Before any other import, of which there are many: one of them may lose a KeyboardInterrupt.
    signal.signal(signal.SIGINT, _leave)
    if not __debug__:
        print("proglog: runs only with assertions on: without -O, PYTHONOPTIMIZE", file=sys.stderr)
        return 2
    from proglog.cli.app import run

    try:
        return run(sys.argv[1:])
    finally:
        # The loop of a command has put Python's own handler back, and what is left is to exit.
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: object) -> None:
    """Ctrl-C while nothing is under way, which a command's loop would know how to end."""
    del number, frame
    os._exit(INTERRUPTED)
