"""Log lines: one JSON object a line, or text for people."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog
from structlog.testing import capture_logs

from proglog.errors import ConfigurationError
from proglog.observability.logging import configure
from tests.sim.world import silence


class Stream(io.TextIOWrapper):
    """A stderr that is, or is not, a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]

    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]


def test_json_where_no_terminal_is() -> None:
    stream = Stream(terminal=False)
    configure(stream=stream)
    log = structlog.get_logger()
    log.debug("hidden")
    log.info("listening", address="127.0.0.1:8400", value=b"\xff", kind={1: object})
    try:
        raise KeyError("x")
    except KeyError:
        log.exception("failed")
    first, second = stream.objects()
    assert first["event"] == "listening"
    assert first["level"] == "info"
    assert first["address"] == "127.0.0.1:8400"
    assert str(first["timestamp"]).endswith("Z")
    assert "KeyError" in str(second["exception"])


def test_text_on_a_terminal() -> None:
    stream = Stream(terminal=True)
    configure(stream=stream)
    structlog.get_logger().info("listening")
    assert "listening" in stream.text
    assert "\x1b[" in stream.text
    forced = Stream(terminal=True)
    configure(format="json", stream=forced)
    structlog.get_logger().info("listening")
    assert forced.objects()[0]["event"] == "listening"


@pytest.mark.parametrize("output", ["json", "console"])
def test_libraries_from_warning_on(output: str) -> None:
    stream = Stream(terminal=False)
    configure("debug", output, stream=stream)
    library = logging.getLogger("grpclib.server")
    library.info("hidden")
    library.warning("odd %s", "frame")
    try:
        raise OSError("gone")
    except OSError:
        library.exception("failed")
    assert "hidden" not in stream.text
    assert "odd frame" in stream.text
    assert "OSError: gone" in stream.text
    assert stream.text.count("grpclib.server") == 2


def test_the_level_holds_for_libraries_too() -> None:
    stream = Stream(terminal=False)
    configure("error", "json", stream=stream)
    logging.getLogger("aiohttp.server").warning("hidden")
    structlog.get_logger().warning("hidden")
    logging.getLogger("aiohttp.server").error("shown")
    assert [entry["event"] for entry in stream.objects()] == ["shown"]


@pytest.mark.parametrize("options", [{"level": "loud"}, {"format": "xml"}])
def test_unknown_settings_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="is none of"):
        configure(**options)


@pytest.mark.parametrize("run", ["first", "second"])
def test_no_test_hides_the_lines_of_the_next_one(run: str) -> None:
    """Else whoever runs after the simulator waits in vain for a line that was told."""
    with capture_logs() as lines:
        structlog.get_logger().info("told", run=run)
    assert [line["run"] for line in lines] == [run]
    silence()
