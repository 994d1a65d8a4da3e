"""`proglog verify` and `proglog repair`: the data of a stopped node."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
from cyclopts import Parameter

from proglog.cli.parameters import Json
from proglog.cli.units import counted, format_bytes
from proglog.log import verify as engine
from proglog.log.verify import Report


def verify(directory: Path, /, *, json: Json = False) -> int:
    """Checks every byte and changes nothing. Returns 1 if records are damaged, else 0, also where
    there is something that the next start mends by itself.

    Parameters
    ----------
    directory
        A node's data directory, or that of one log.
    json
        Print a JSON object for each log.
    """
    reports = [engine.verify(folder) for folder in _logs(directory)]
    for report in reports:
        if json:
            _print_json({"damaged": report.is_damaged, **asdict(report)})
        else:
            _print_report(report)
    return 1 if any(report.is_damaged for report in reports) else 0


def repair(
    directory: Path,
    /,
    *,
    cut_damaged: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """Mends what is safe, and keeps what it removes.

    Parameters
    ----------
    directory
        A node's data directory, or that of one log.
    cut_damaged
        End the log before the first damaged record. All behind it is lost to readers, and kept in
        files beside the log.
    json
        Print a JSON object for each log.
    """
    for folder in _logs(directory):
        done = engine.repair(folder, cut_damaged=cut_damaged)
        if json:
            _print_json({"folder": folder, "done": done})
        else:
            print(*(f"{folder}: {step}" for step in done), sep="\n")
    return 0


def _logs(directory: Path) -> list[Path]:
    """The directories of the logs in a data directory; itself, if it is that of a log, whatever
    else there is in it."""
    folder = directory / "logs"
    is_log = any(directory.glob("*.store"))
    return sorted(folder.iterdir()) if folder.is_dir() and not is_log else [directory]


def _print_report(report: Report) -> None:
    for problem in report.problems:
        print(problem)
    verdict = "damaged" if report.is_damaged else "whole"
    print(
        f"{report.folder}: {counted(report.segments, 'segment')}, "
        f"{counted(report.batches, 'batch')}, {counted(report.records, 'record')}, "
        f"{format_bytes(report.bytes)}: {verdict}"
    )


def _print_json(members: dict[str, Any]) -> None:
    print(orjson.dumps(members, default=str).decode())
