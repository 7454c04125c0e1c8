"""`ray timeline` and `ray metrics`: what ran when, and the numbers. PROCESS of a shell: it looks, and owns nothing."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from ray.cli.state import add_session_arguments, complain, expected


def add(commands: Any) -> None:
    """Adds the commands to argparse's `commands`."""
    drawing = commands.add_parser("timeline", help="writes what ran when, for ui.perfetto.dev or chrome://tracing")
    drawing.add_argument("-o", "--output", default=None, help="the file; by default ray-timeline-<date>.json here")
    drawing.set_defaults(run=run_timeline)
    numbers = commands.add_parser("metrics", help="prints all metrics in Prometheus's text format")
    numbers.set_defaults(run=run_metrics)
    for command in (drawing, numbers):
        add_session_arguments(command)


def run_timeline(options: argparse.Namespace) -> int:
    from ray import _inspect, _timeline

    path = options.output or time.strftime("ray-timeline-%Y-%m-%d_%H-%M-%S.json")
    try:
        with _inspect.source(options.address, options.timeout) as session:
            trace = _timeline.of_session(session)
        _timeline.write(trace, path)
    except expected() as error:
        return complain("timeline", error)
    calls = sum(event["ph"] == "X" for event in trace)
    print(f"{calls} calls are drawn in {path}; open it in ui.perfetto.dev or chrome://tracing")
    return 0


def run_metrics(options: argparse.Namespace) -> int:
    from ray.util import metrics

    try:
        sys.stdout.write(metrics.prometheus_text(options.address, options.timeout))
    except expected() as error:
        return complain("metrics", error)
    return 0
