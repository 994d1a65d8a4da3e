"""Log lines: JSON for machines, colours for a terminal.

The code logs through `structlog.get_logger()`; `configure` decides once, at the start of a program,
what becomes of it. Libraries that use the standard logging are routed into the same stream from
WARNING on: that path costs three times as much a line, so nothing of ours takes it.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import orjson
import structlog
from structlog.typing import Processor

from proglog.errors import ConfigurationError

LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("auto", "json", "console")


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:  # noqa: A002  # the option's name
    """Sends log lines of at least `level` to `stream` (stderr unless given).

    Format `auto` is `console` on a terminal and `json`, one object a line, elsewhere. Raises
    ConfigurationError.
    """
    if level not in LEVELS:
        raise ConfigurationError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise ConfigurationError(f"log format {format!r} is none of {', '.join(FORMATS)}")
    stream = sys.stderr if stream is None else stream
    if format == "auto":
        format = "console" if stream.isatty() else "json"  # noqa: A001  # see above
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_json() if format == "json" else _console(stream)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=(
            structlog.BytesLoggerFactory(stream.buffer)
            if format == "json"
            else structlog.WriteLoggerFactory(stream)
        ),
    )
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(max(threshold, logging.WARNING))


def _json() -> list[Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_dumps),
    ]


def _console(stream: TextIO) -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return [renderer]


def _dumps(event: dict[str, Any], **_: Any) -> bytes:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS)


class _ToStructlog(logging.Handler):
    """Passes a library's line on, under the library's name."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            structlog.get_logger().log(
                record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
            )
        except Exception:  # noqa: BLE001  # a handler must not raise into the library
            self.handleError(record)
