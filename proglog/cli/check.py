"""`proglog verify` and `proglog repair`: the data of a stopped node."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
from cyclopts import Parameter

from proglog.cli.parameters import Json
from proglog.cli.units import counted, format_bytes
from proglog.errors import ConfigurationError, CorruptionError
from proglog.log.names import GROUPS
from proglog.log.plan import Verdict
from proglog.log.repair import Allow
from proglog.log.repair import repair as repair_log
from proglog.log.verify import Report
from proglog.log.verify import verify as verify_log
from proglog.replica.identity import FILE_NAME, NodeReport, verify_node
from proglog.replica.offline import why_not_given_up


def verify(directory: Path, /, *, json: Json = False) -> int:
    """Checks every byte and changes nothing. Returns 1 if records cannot be read or the node would
    not start, else 0, also where there is something that the next start repairs by itself; 3 where
    the data are of another version.

    Parameters
    ----------
    directory
        A node's data directory, or that of one log.
    json
        Print a JSON object for each log, and one for the file `node` if something is wrong with it.
    """
    logs = _logs(directory)
    node = verify_node(directory) if directory not in logs else None
    if node is not None and node.entries:
        _tell_of_node(node, json=json)
    reports = [verify_log(folder) for folder in logs]
    for report in reports:
        if json:
            _print_json({"damaged": report.is_damaged, **asdict(report)})
        else:
            _print_report(report)
    damaged = [report.is_damaged for report in reports]
    return 1 if any(damaged) or (node is not None and node.is_damaged) else 0


def repair(
    directory: Path,
    /,
    *,
    give_up_damaged: Annotated[bool, Parameter(negative=())] = False,
    cut_damaged: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """Repairs what is safe, and keeps what it removes. The node must be stopped.

    Parameters
    ----------
    directory
        A node's data directory, or that of one log.
    give_up_damaged
        Replace just the batches that cannot be read by gaps. Their records are lost; all others
        stay, at the same offsets.
    cut_damaged
        End the log before the first damaged record. All that follows is lost to readers, and kept
        in files beside the log.
    json
        Print a JSON object for each log.
    """
    if give_up_damaged and cut_damaged:
        raise ConfigurationError(
            "--give-up-damaged and --cut-damaged exclude each other: choose one", setting="repair"
        )
    allow = Allow.GIVE_UP if give_up_damaged else Allow.CUT if cut_damaged else Allow.NOTHING
    logs = _logs(directory)
    for folder in logs:
        done = repair_log(folder, allow=allow, guard=why_not_given_up)
        if json:
            _print_json({"folder": folder, "done": done})
        else:
            print(*(f"{folder}: {step}" for step in done), sep="\n")
    if directory not in logs:
        _refuse_lost(verify_node(directory))
    return 0


def _refuse_lost(node: NodeReport) -> None:
    """Whose a directory is can be told by no repair."""
    for entry in node.entries:
        if entry.verdict is Verdict.REFUSED:
            raise CorruptionError(str(entry), file=entry.file, position=entry.position)


def _logs(directory: Path) -> list[Path]:
    """The directories of the logs in a data directory; itself, if it is that of a log, whatever
    else there is in it."""
    folder = directory / GROUPS
    is_log = any(directory.glob("*.store"))
    if is_log or not (folder.is_dir() or (directory / FILE_NAME).exists()):
        return [directory]
    folders = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in folders if path.is_dir())


def _tell_of_node(report: NodeReport, *, json: bool) -> None:
    if json:
        _print_json({"damaged": report.is_damaged, **asdict(report)})
        return
    print(*report.entries, f"{report.file}: {_verdict(report.is_damaged)}", sep="\n")


def _verdict(is_damaged: bool) -> str:
    return "damaged" if is_damaged else "whole"


def _print_report(report: Report) -> None:
    for entry in report.entries:
        print(entry)
    print(
        f"{report.folder}: {counted(report.segments, 'segment')}, "
        f"{counted(report.batches, 'batch')}, {counted(report.records, 'record')}, "
        f"{format_bytes(report.bytes)}: {_verdict(report.is_damaged)}"
    )


def _print_json(members: dict[str, Any]) -> None:
    print(orjson.dumps(members, default=str).decode())
