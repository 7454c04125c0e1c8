"""ray/_driver_output.py: lines of workers come out whole, marked, and never raise into the engine's receiver."""

from __future__ import annotations

import io
import sys

import pytest

from ray import _driver_output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_each_line_has_the_name_and_pid_of_its_worker_before_it(capsys):
    _driver_output.on_log_lines([("f", 12, "stdout", "one"), ("g", 13, "stderr", "two"), ("f", 12, "stdout", "three")])
    assert capsys.readouterr() == ("(f pid=12) one\n(f pid=12) three\n", "(g pid=13) two\n")


def test_colour_is_for_terminals_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    _driver_output.on_log_lines([("f", 12, "stdout", "text")])
    assert sys.stdout.getvalue().startswith("\x1b[") and "\x1b[0m text" in sys.stdout.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    _driver_output.on_log_lines([("f", 12, "stdout", "text")])
    assert sys.stdout.getvalue() == "(f pid=12) text\n"


def test_of_a_progress_bar_only_the_last_state_is_shown(capsys):
    _driver_output.on_log_lines([("f", 1, "stdout", "10%\r20%\r100%")])
    assert capsys.readouterr().out == "(f pid=1) 100%\n"


def test_text_that_the_stream_cannot_encode_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    _driver_output.on_log_lines([("f", 1, "stdout", "snow ☃")])
    assert raw.getvalue() == b"(f pid=1) snow \\u2603\n"


@pytest.mark.parametrize("gone", ["none", "closed"])
def test_a_stream_that_is_gone_loses_the_output_and_nothing_else(monkeypatch, gone):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", None if gone == "none" else stream)
    _driver_output.on_log_lines([("f", 1, "stdout", "text")])


def test_errors_go_to_stderr_unless_silenced(monkeypatch, capsys):
    _driver_output.on_error("task", "it failed\n", {})
    assert capsys.readouterr().err == "ray: task: it failed\n"
    monkeypatch.setenv("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    _driver_output.on_error("task", "it failed", {})
    assert capsys.readouterr().err == ""
