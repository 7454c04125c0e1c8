"""ray.experimental.tqdm_ray: bars of many workers on one terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ray.experimental import tqdm_ray
from tests.wait import wait_until

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    """A terminal of so many rows, as the codes that Board writes leave it."""

    def isatty(self):
        return True

    def screen(self):
        lines = [""]
        for code, up, text in re.findall(r"(\x1b\[(\d*)[AJK])|([^\x1b]+)", self.getvalue()):
            if code.endswith("A"):
                del lines[len(lines) - 1 - int(up) : -1]  # what Board does next is to clear from there on
            elif text:
                first, *more = text.split("\n")
                lines[-1] += first
                lines += more
        return lines[:-1]


class File(io.StringIO):
    def isatty(self):
        return False


def state(bar="a", **changes):
    return {
        "bar": bar, "pid": 7, "desc": bar, "total": 10, "unit": "it", "n": 0, "began": 100.0, "closed": False, **changes
    }  # fmt: skip


def test_a_line_says_how_far_how_long_and_how_fast():
    bar = "#" * 20 + " " * 20
    assert tqdm_ray.line(state(n=5), 102.5, 120) == f"a (pid=7):  50%|{bar}| 5/10 [00:02<00:02, 2.00it/s]"
    assert len(tqdm_ray.line(state(n=5), 102.5, 70)) == 70
    assert tqdm_ray.line(state(n=5, total=None, desc=""), 105.0, 80) == "(pid=7) 5it [00:05, 1.00it/s]"
    assert tqdm_ray.line(state(n=1), 110.0, 120).endswith("| 1/10 [00:10<01:30, 10.00s/it]")
    assert tqdm_ray.line(state(n=12), 101.0, 120).startswith("a (pid=7): 100%|")
    assert len(tqdm_ray.line(state(desc="x" * 300), 101.0, 60)) == 60
    assert tqdm_ray.line(state(), 100.0, 120).endswith("| 0/10 [00:00<?, 0.00it/s]")


def test_bars_are_drawn_one_below_another_and_stay_when_they_end():
    out = Terminal()
    board = tqdm_ray.Board(out)
    board.show(state("a"))
    board.show(state("b", n=1))
    board.show(state("a", n=10, closed=True))
    assert [line.split(":")[0] for line in out.screen()] == ["a (pid=7)", "b (pid=7)"]
    assert "100%" in out.screen()[0]
    board.show(state("b", n=10, closed=True))
    board.show(state("c", closed=True))
    assert [line.split(":")[0] for line in out.screen()] == ["a (pid=7)", "b (pid=7)", "c (pid=7)"]


def test_what_is_printed_comes_above_the_bars():
    out = Terminal()
    board = tqdm_ray.Board(out)
    board.print(lambda: out.write("before\n"))
    board.show(state("a"))
    board.print(lambda: out.write("above\n"))
    assert [line.split(":")[0] for line in out.screen()] == ["before", "above", "a (pid=7)"]
    board.hide_bars()
    assert out.screen() == ["before", "above"]
    board.unhide_bars()
    assert len(out.screen()) == 3


def test_the_last_of_many_quick_changes_is_drawn_though_nothing_follows():
    out = Terminal()
    board = tqdm_ray.Board(out)
    for n in range(8):
        board.show(state("a", n=n))
    wait_until(lambda: "70%" in out.screen()[-1])


def test_in_a_file_a_bar_is_a_line_at_each_tenth():
    out = File()
    board = tqdm_ray.Board(out)
    for n in range(101):
        board.show(state("a", n=n, total=100))
    board.show(state("a", n=100, total=100, closed=True))
    lines = out.getvalue().splitlines()
    assert len(lines) == 12
    assert not any("\x1b" in line for line in lines)


def test_bars_of_tasks_and_actors_are_drawn_by_the_driver():
    program = """
import ray
from ray.experimental import tqdm_ray

@ray.remote
def work(i):
    for x in tqdm_ray.tqdm(range(20), desc=f"task {i}", flush_interval_s=0):
        pass
    print("plain text")

@ray.remote
class Actor:
    def work(self):
        bar = tqdm_ray.tqdm(total=5, desc="actor", unit="step")
        bar.set_description("renamed")
        for _ in range(5):
            bar.update()
        bar.close()
        bar.close()
        return bar.n, bar.total

ray.init(num_cpus=2, logging_level="error")
ray.get([work.remote(1), work.remote(2)])
assert ray.get(Actor.remote().work.remote()) == (5, 5)
for x in tqdm_ray.tqdm([1, 2], desc="driver"):
    pass
ray.shutdown()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert tqdm_ray.PREFIX.strip() not in done.stdout + done.stderr
    assert done.stdout.count("plain text") == 2
    ended = [line for line in done.stderr.splitlines() if "100%" in line]
    for name in ("task 1", "task 2", "renamed", "driver"):
        assert any(line.startswith(f"{name} (pid=") for line in ended), done.stderr


def test_a_line_that_only_looks_like_a_report_is_shown(capsys):
    tqdm_ray.on_line("nonsense")
    tqdm_ray.on_line("[1]")
    assert capsys.readouterr().out == f"{tqdm_ray.PREFIX}nonsense\n{tqdm_ray.PREFIX}[1]\n"


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="total=-1"):
        tqdm_ray.tqdm(total=-1)
    with pytest.raises(ValueError, match="flush_interval_s='1'"):
        tqdm_ray.tqdm(flush_interval_s="1")
    with pytest.raises(TypeError, match="without an iterable"):
        next(iter(tqdm_ray.tqdm()))
