"""`python -m scripts.bench single|cluster`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from pathlib import Path

import uvloop

from scripts.bench import cluster, single

_SECONDS_MAX = {"single": 900, "cluster": 600}


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    # However it is ended, the servers end with it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    what = {"single": single.run, "cluster": cluster.run}[options.what]
    with tempfile.TemporaryDirectory(prefix="proglog-bench-", dir=options.dir) as folder:
        async with asyncio.timeout(_SECONDS_MAX[options.what]):
            report = await what(Path(folder), quick=options.quick)
    report.print()
    if options.json:
        report.save(options.json)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts.bench", description=__doc__)
    parser.add_argument("what", choices=("single", "cluster"))
    parser.add_argument("--quick", action="store_true", help="to see that it works")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--dir", type=Path, help="where data goes meanwhile (default: TMPDIR)")
    uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
