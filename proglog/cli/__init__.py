"""The command line. Commands are imported when they are used: `proglog --help` stays quick."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
TERMINATED = 143
"""What a shell says after SIGTERM, and the exit status of a process whom that cannot end by itself:
the first of a container."""


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
    # The kernel drops a SIGTERM for the first process of a container that has no handler.
    signal.signal(signal.SIGTERM, _end)
    if not __debug__:
        print("proglog: runs only with assertions on: without -O, PYTHONOPTIMIZE", file=sys.stderr)
        return 2
    from pathlib import Path

    if (Path(__file__).parent.parent / "proglog.py").exists():
        print(
            "proglog: the progress bar called proglog is installed over this package, which is"
            " called proglogd: pip uninstall proglog, then pip install --force-reinstall proglogd",
            file=sys.stderr,
        )
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


def _end(number: int, frame: object) -> None:
    """SIGTERM while nothing would be lost by it: before a command's loop takes it."""
    del number, frame
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(TERMINATED)
