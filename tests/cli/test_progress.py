"""The line that says how far a command is."""

from __future__ import annotations

import sys

import pytest

from proglog.cli.progress import Progress


def _be_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("proglog.cli.progress.REDRAW_SECONDS", 0.0)


def test_a_bar_where_the_end_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _be_a_terminal(monkeypatch)
    progress = Progress(4096)
    progress.add(10, 1024)
    progress.add(30, 3072)
    progress.finish()
    first, last, _, end = capsys.readouterr().err.split("\x1b[K")
    assert first.startswith(f"\r 25% [{'#' * 6}{'.' * 18}] 10 records, 1 KiB, ")
    assert last.startswith(f"\r100% [{'#' * 24}] 40 records, 4 KiB, ")
    assert first.endswith("/s")
    assert end == "\n"


def test_a_counter_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _be_a_terminal(monkeypatch)
    progress = Progress(None)
    progress.add(1234, 5)
    assert capsys.readouterr().err.startswith("\r1,234 records, 5 B, ")


def test_without_a_terminal_only_the_end_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(4096)
    progress.add(10, 1024)
    assert capsys.readouterr().err == ""
    progress.finish()
    assert capsys.readouterr().err.startswith("10 records, 1 KiB, ")
