"""Who did what, from where, and whether it was allowed: lines of JSON with OCSF's field names.

What repeats is merged, never dropped in silence: the first of its kind is told at once, the others
as a count with the next one, a minute later at the latest. Texts of others are cut and escaped. No
value, key, header or key material gets here.

The sink is bounded. When it is full or fails, lines are dropped and counted, the loss is told in
the log at once and in the trail as soon as it can be written again. Where an audit is required,
changes of the cluster are refused meanwhile, and each is on disk before it is made.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import structlog

from proglog import limits
from proglog.auth.access import ACCESS, ADMIN, Scope
from proglog.auth.principal import Principal
from proglog.errors import Unavailable, clip, reason_of

_logger = structlog.get_logger("audit")

_AUTHENTICATION, _API, _POLICY, _PROCESS = 3002, 6003, 3001, 5019
"""OCSF's classes."""


class Sink(Protocol):
    """Where lines go."""

    async def write(self, lines: list[str]) -> None:
        """Raises OSError."""


class FileSink:
    """A file, opened for each write: whoever rotates it need not tell."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def write(self, lines: list[str]) -> None:
        await asyncio.to_thread(self._write, "".join(f"{line}\n" for line in lines).encode("ascii"))

    def _write(self, text: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o600), "ab") as file:
            file.write(text)


class LogSink:
    """The log of the node, each line an event called audit."""

    async def write(self, lines: list[str]) -> None:
        for line in lines:
            _logger.info("audit", **json.loads(line))


class _Merged:
    """What is told once in a while."""

    __slots__ = ("count", "event", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.count = 0
        self.event: dict[str, Any] = {}


class Key(NamedTuple):
    """What makes two events the same."""

    kind: int
    who: str
    what: str
    detail: str


_OTHER = Key(0, "", "", "")


class Audit:
    """The trail of one node. `run` it; events of before are kept until then."""

    def __init__(
        self,
        sink: Sink,
        *,
        node: str,
        cluster: str,
        now_ms: Callable[[], int],
        is_required: bool = False,
    ) -> None:
        self._sink = sink
        self.node = node
        self._cluster = cluster
        self._now_ms = now_ms
        self._is_required = is_required
        self._loop = asyncio.get_running_loop()
        self._lines: list[str] = []
        self._wake = asyncio.Event()
        self._written = 0
        self._taken = 0
        self._progress: asyncio.Future[None] | None = None
        self._merged: dict[Key, _Merged] = {}
        self._sequence = 0
        self.lost = 0
        """Lines that no sink took."""
        self._untold = 0
        self.is_failing = False

    # --- events ----------------------------------------------------------------------------------

    def decided(self, principal: Principal, route: str, name: str, why: str) -> None:
        """A call was allowed, or why not."""
        access = ACCESS[route]
        if access.scope is Scope.OPEN:
            return
        key = Key(_API, principal.subject, f"{access.action} {name}", why)
        seconds = limits.audit_merge_seconds if why else limits.audit_allowed_seconds
        if access.action == ADMIN and not why:
            seconds = 0.0
        merged = self._merged.get(key)
        if merged is not None and self._loop.time() < merged.until:
            merged.count += 1
            return
        host, _, port = principal.source.rpartition(":")
        self._tell(
            key,
            seconds,
            {
                "class_uid": _API,
                "activity": access.action or "speak as a node",
                "status": "Failure" if why else "Success",
                "status_detail": why,
                "actor": {
                    "user": {
                        "name": _text(principal.subject),
                        "type": principal.kind.value,
                        "uid": principal.fingerprint,
                    }
                },
                "src_endpoint": {"ip": host, "port": port},
                "api": {"operation": route},
                "resource": {"name": _text(name)},
            },
        )

    def refused(self, source: str, why: str) -> None:
        """A connection was turned away before it was one."""
        host, _, port = source.rpartition(":")
        self._tell(
            Key(_AUTHENTICATION, _prefix(host), "", why),
            limits.audit_merge_seconds,
            {
                "class_uid": _AUTHENTICATION,
                "activity": "connect",
                "status": "Failure",
                "status_detail": _text(why),
                "src_endpoint": {"ip": host, "port": port},
            },
        )

    def reloaded(self, what: str, problem: str, version: str = "") -> None:
        """Files were replaced by others, or why they were not."""
        self._tell(
            Key(_POLICY, what, version, problem),
            0.0,
            {
                "class_uid": _POLICY,
                "activity": f"reload {what}",
                "status": "Failure" if problem else "Success",
                "status_detail": _text(problem),
                "policy": {"version": version},
            },
        )

    def life(self, activity: str, version: str) -> None:
        """The node starts or stops."""
        event = {"class_uid": _PROCESS, "activity": activity, "status": "Success"}
        self._tell(Key(_PROCESS, activity, version, ""), 0.0, {**event, "version": version})

    async def settle(self) -> None:
        """Until what was told so far is written. Raises Unavailable where that is required and
        fails."""
        if not self._is_required:
            return
        target = self._taken + len(self._lines)
        self._wake.set()
        while self._written < target:
            if self._progress is None:
                self._progress = self._loop.create_future()
            await asyncio.shield(self._progress)
        if self.is_failing:
            raise Unavailable("the audit trail cannot be written, and it is required")

    # --- merging ---------------------------------------------------------------------------------

    def _tell(self, key: Key, seconds: float, event: dict[str, Any]) -> None:
        """The first of a kind at once; the others are counted until `seconds` later."""
        now = self._loop.time()
        merged = self._merged.get(key)
        if merged is None and len(self._merged) >= limits.audit_keys_max:
            # Somebody makes up names: what there is no room for is one kind.
            key, merged = _OTHER, self._merged.get(_OTHER)
            event = {"class_uid": 0, "activity": "others", "status": "Failure"}
        if merged is None:
            merged = self._merged[key] = _Merged(0.0)
        if now < merged.until:
            merged.count += 1
            merged.event = event
            return
        count, merged.count = merged.count + 1, 0
        merged.until, merged.event = now + seconds, event
        self._write(event, count)

    def _sweep(self) -> None:
        """Tells of what was counted, and forgets what has not come again."""
        now = self._loop.time()
        for key, merged in list(self._merged.items()):
            if now < merged.until:
                continue
            if merged.count:
                self._write(merged.event, merged.count)
            del self._merged[key]

    def _write(self, event: dict[str, Any], count: int) -> None:
        if len(self._lines) >= limits.audit_lines_max:
            self._lose(1)
            return
        self._sequence += 1
        line = {
            "time": self._now_ms(),
            **event,
            "count": count,
            "metadata": {
                "product": "proglog",
                "node": self.node,
                "cluster": self._cluster,
                "sequence": self._sequence,
            },
        }
        self._lines.append(json.dumps(line))
        self._wake.set()

    # --- writing ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Writes, for ever."""
        sweep_at = self._loop.time() + limits.audit_merge_seconds
        while True:
            try:
                async with asyncio.timeout_at(sweep_at):
                    await self._wake.wait()
            except TimeoutError:
                self._sweep()
                sweep_at = self._loop.time() + limits.audit_merge_seconds
            await self.flush()

    async def flush(self) -> None:
        """Writes what waits."""
        self._wake.clear()
        lines, self._lines = self._lines, []
        if not lines:
            return
        self._taken += len(lines)
        try:
            await self._sink.write(lines)
        except OSError as error:
            self._lose(len(lines))
            if not self.is_failing:
                _logger.critical("the audit trail cannot be written", why=reason_of(error))
            self.is_failing = True
        else:
            self._recovered()
        self._written += len(lines)
        if self._progress is not None:
            self._progress.set_result(None)
            self._progress = None

    def _recovered(self) -> None:
        self.is_failing = False
        if self._untold:
            count, self._untold = self._untold, 0
            event = {"class_uid": _PROCESS, "activity": "audit lost", "status": "Failure"}
            self._write(event, count)

    def _lose(self, count: int) -> None:
        self.lost += count
        self._untold += count


def _text(text: str) -> str:
    return clip(text, limits.audit_text_bytes_max)


def _prefix(host: str) -> str:
    """Of the network that somebody comes from: /24, or /64 of IPv6."""
    if ":" in host:
        return ":".join(host.strip("[]").split(":")[:4])
    return host.rpartition(".")[0]
