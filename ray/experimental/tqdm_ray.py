"""tqdm_ray: progress bars of many workers at once, all drawn by the driver, one below another.

    for x in tqdm_ray.tqdm(items, desc="reading"): ...      anywhere: in the driver, a task, an actor

In a worker a bar is only a counter: it prints a line of JSON behind PREFIX, ten times a second at most, and the
driver's output, which gets all lines of workers, hands such lines to `on_line` instead of printing them. The driver
keeps them in its Board, in the thread that receives output, and in threads that have bars of their own; they meet under
the Board's lock. Other output goes through `Board.print`, which takes the bars away, prints, and draws them again.
A bar whose worker died stays as it is until the session ends.
"""

from __future__ import annotations

import builtins
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TextIO

import ray

PREFIX = "__ray_tqdm__ "  # known to ray/_driver_output.py too
_FIELDS = {"bar", "pid", "desc", "total", "unit", "n", "began", "closed"}
REPORT_EVERY_S = 0.1
DRAW_EVERY_S = 0.05


class tqdm:
    """A progress bar, used like that of the tqdm package.

    Args:
        iterable: what to iterate over; the bar advances with it.
        desc: text before the bar.  total: how many there will be; by default len(iterable), if it has one.
        unit: what is counted.  position: ignored: the driver places all bars.
        flush_interval_s: how often it is reported at most.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        desc: str | None = None,
        total: int | None = None,
        unit: str | None = None,
        *,
        position: int | None = None,
        flush_interval_s: float | None = None,
    ) -> None:
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        for name, given in (("total", total), ("flush_interval_s", flush_interval_s)):
            if given is not None and (isinstance(given, (bool, str)) or not given >= 0):
                raise ValueError(f"tqdm: {name}={given!r}: expected a number >= 0, or None")
        self._iterable = iterable
        self._state: dict[str, Any] = {
            "bar": os.urandom(6).hex(),
            "pid": os.getpid(),
            "desc": desc or "",
            "total": total,
            "unit": unit or "it",
            "n": 0,
            "began": time.time(),
            "closed": False,
        }
        self._every_s = REPORT_EVERY_S if flush_interval_s is None else flush_interval_s
        self._reported = 0.0
        self._in_worker = _in_worker()
        self._report()

    @property
    def n(self) -> int:
        """How many so far."""
        return int(self._state["n"])

    @property
    def total(self) -> int | None:
        """How many there will be, if that is known."""
        return self._state["total"]  # type: ignore[no-any-return]

    @total.setter
    def total(self, total: int | None) -> None:
        self._state["total"] = total

    def update(self, n: int = 1) -> None:
        """n more are done."""
        self._state["n"] += n
        if time.monotonic() - self._reported >= self._every_s:
            self._report()

    def set_description(self, desc: str) -> None:
        """Changes the text before the bar."""
        self._state["desc"] = desc
        self._report()

    def refresh(self) -> None:
        """Reports now what the bar has reached."""
        self._report()

    def close(self) -> None:
        """Reports the end; the bar is drawn for the last time."""
        if not self._state["closed"]:
            self._state["closed"] = True
            self._report()

    def __iter__(self) -> Iterator[Any]:
        if self._iterable is None:
            raise TypeError("tqdm: this bar was made without an iterable: call update()")
        try:
            for item in self._iterable:
                yield item
                self.update(1)
        finally:
            self.close()

    def __enter__(self) -> tqdm:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _report(self) -> None:
        self._reported = time.monotonic()
        if self._in_worker:
            builtins.print(PREFIX + json.dumps(self._state), flush=True)
        else:
            instance().show(self._state)


def _in_worker() -> bool:
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_task_id() is not None or context.get_actor_id() is not None


def safe_print(*args: Any, **kwargs: Any) -> None:
    """As print, but in the driver above the bars instead of through them."""
    instance().print(lambda: builtins.print(*args, **kwargs))


def on_line(line: str) -> None:
    """A worker printed PREFIX and this. Called by the driver's output. What is no state of a bar is shown as it is."""
    try:
        state = json.loads(line)
        known = isinstance(state, dict) and set(state) >= _FIELDS
    except ValueError:
        known = False
    if known:
        instance().show(state)
    else:
        safe_print(PREFIX + line)


# --- the driver's side -----------------------------------------------------------------------------------------------


class Board:
    """All bars that are shown in this process.

    On a terminal they are the last lines of it. Elsewhere, in a file or a notebook's log, a bar is a line at each tenth
    of its way.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._lock = threading.RLock()  # print() may lead to a bar's own output
        self._bars: dict[str, dict[str, Any]] = {}
        self._drawn = 0  # lines on the terminal now
        self._drawn_at = 0.0
        self._later: threading.Timer | None = None
        self._tenths: dict[str, int] = {}
        self._hidden = False

    def show(self, state: dict[str, Any]) -> None:
        """A bar has changed."""
        with self._lock:
            bar = str(state["bar"])
            self._bars[bar] = dict(state)
            if not self._is_terminal():
                self._write_tenth(bar)
            elif not self._hidden:
                left = self._drawn_at + DRAW_EVERY_S - time.monotonic()
                if left <= 0 or state["closed"]:
                    self._redraw()
                elif self._later is None:
                    self._later = threading.Timer(left, self._redraw)
                    self._later.daemon = True
                    self._later.start()
            if state["closed"]:
                self._bars.pop(bar, None)
                self._tenths.pop(bar, None)

    def print(self, write: Any) -> None:
        """Calls write(), which prints, with the bars out of its way."""
        with self._lock:
            if not self._drawn:
                write()
                return
            self._erase()
            try:
                write()
            finally:
                self._redraw()

    def hide_bars(self) -> None:
        """Takes the bars away until unhide_bars()."""
        with self._lock:
            self._hidden = True
            self._erase()

    def unhide_bars(self) -> None:
        """Shows them again."""
        with self._lock:
            self._hidden = False
            self._redraw()

    def _stream(self) -> TextIO | None:
        return self._out or sys.stderr

    def _is_terminal(self) -> bool:
        out = self._stream()
        try:
            return out is not None and out.isatty()
        except ValueError:  # it is closed
            return False

    def _redraw(self) -> None:
        with self._lock:
            if self._later is not None:
                self._later.cancel()
                self._later = None
            if self._hidden or not self._is_terminal():
                return
            width = shutil.get_terminal_size().columns
            # Those that have ended come first: their lines stay behind, above the ones that go on.
            bars = sorted(self._bars.values(), key=lambda bar: not bar["closed"])
            text = "".join(f"\x1b[2K{line(bar, time.time(), width - 1)}\n" for bar in bars)
            self._erase()
            self._write(text)
            self._drawn = sum(not bar["closed"] for bar in bars)
            self._drawn_at = time.monotonic()

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _write_tenth(self, bar: str) -> None:
        state = self._bars[bar]
        tenth = 10 * state["n"] // state["total"] if state["total"] else -1
        if state["closed"] or tenth != self._tenths.get(bar):
            self._tenths[bar] = tenth
            self._write(line(state, time.time(), 100) + "\n")

    def _write(self, text: str) -> None:
        out = self._stream()
        try:
            if out is not None:
                out.write(text)
                out.flush()
        except (OSError, ValueError):
            return  # the terminal is gone: there is nobody to show anything to


def line(state: dict[str, Any], now: float, width: int) -> str:
    """One bar as text, at most width characters: `desc (pid=1):  40%|####      | 4/10 [00:02<00:03, 2.00it/s]`."""
    n, total, unit = state["n"], state["total"], state["unit"]
    passed = max(0.0, now - state["began"])
    rate = n / passed if passed > 0 else 0.0
    desc = f"{state['desc']} (pid={state['pid']}): " if state["desc"] else f"(pid={state['pid']}) "
    speed = f"{rate:.2f}{unit}/s" if rate >= 1 or not rate else f"{1 / rate:.2f}s/{unit}"
    if not total:
        return f"{desc}{n}{unit} [{_clock(passed)}, {speed}]"[:width]
    share = min(1.0, n / total)
    left = _clock((total - n) / rate) if rate and n < total else "?" if n < total else "00:00"
    head, tail = f"{desc}{share:4.0%}|", f"| {n}/{total} [{_clock(passed)}<{left}, {speed}]"
    room = min(40, width - len(head) - len(tail))
    return f"{head}{('#' * int(room * share)).ljust(max(room, 0))}{tail}"[:width]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


_board = Board()


def instance() -> Board:
    """The Board of this process."""
    return _board
