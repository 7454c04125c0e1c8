"""What a person sees: the workers' prints and errors in the driver's terminal, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)


def test_prints_of_workers_appear_with_name_and_pid_and_none_is_lost_at_exit():
    done = run(
        """
        import sys, ray
        ray.init(num_cpus=2, logging_level="error")

        @ray.remote
        def f(i):
            print("line", i)
            if i == 0:
                print("to stderr", file=sys.stderr)

        ray.get([f.remote(i) for i in range(200)])
        """
    )
    lines = re.findall(r"^\(f pid=\d+\) line (\d+)$", done.stdout, re.M)
    assert sorted(map(int, lines)) == list(range(200)), done.stderr
    assert re.search(r"^\(f pid=\d+\) to stderr$", done.stderr, re.M)


def test_an_actor_s_prints_carry_its_class():
    done = run(
        """
        import ray
        ray.init(num_cpus=1)

        @ray.remote
        class Speaker:
            def say(self):
                print("hello")

        speaker = Speaker.remote()
        ray.get(speaker.say.remote())
        """
    )
    assert re.search(r"^\(Speaker.* pid=\d+\) hello$", done.stdout, re.M), done


@pytest.mark.parametrize("argument", ["log_to_driver=False", "driver_mode=ray.SILENT_MODE", "redirect_output=True"])
def test_the_driver_stays_silent_if_asked(argument):
    done = run(
        f"""
        import ray
        ray.init(num_cpus=1, {argument})

        @ray.remote
        def f():
            print("secret")

        ray.get(f.remote())
        """
    )
    assert done.returncode == 0 and "secret" not in done.stdout + done.stderr


def test_an_error_that_nobody_fetches_is_printed():
    done = run(
        """
        import time, ray
        ray.init(num_cpus=1)

        @ray.remote
        def fail():
            raise ValueError("nobody asks")

        ray.wait([fail.remote()])
        """
    )
    assert "nobody asks" in done.stderr


def test_ctrl_c_ends_a_get_at_once_and_leaves_a_usable_session():
    program = """
        import time, ray
        ray.init(num_cpus=1)

        @ray.remote
        def hang():
            time.sleep(1000)

        @ray.remote(num_cpus=0)
        def f():
            return "usable"

        ref = hang.remote()
        try:
            print("waiting", flush=True)
            ray.get(ref)
        except KeyboardInterrupt:
            print(ray.get(f.remote()), flush=True)
        """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "waiting\n"
    os.kill(driver.pid, signal.SIGINT)
    out, err = driver.communicate(timeout=30)
    assert out == "usable\n", err
    assert driver.returncode == 0


def test_lines_keep_their_order_while_one_thread_still_prints_and_another_receives():
    """A thread that printed had given up the receiver's role: another got the next lines and printed them at once."""
    done = run(
        """
        import sys, threading, time, ray

        class Slow:
            shown = []
            second = threading.Event()
            def write(self, text):
                if "line 1\\n" in text:
                    self.second.wait(1)  # a terminal that doesn't take it yet
                elif "line 2\\n" in text:
                    self.second.set()
                self.shown.append(text)
            def flush(self): pass
            def isatty(self): return False

        terminal, sys.stdout = sys.stdout, Slow()
        ray.init(num_cpus=1, logging_level="error")

        @ray.remote
        def say(i):
            print("line", i)
        getters = []
        for i in (1, 2):
            getters.append(threading.Thread(target=ray.get, args=(say.remote(i),)))
            getters[-1].start()
            time.sleep(0.3)
        for thread in getters: thread.join()
        ray.shutdown()
        terminal.write("".join(Slow.shown))
        """
    )
    assert re.findall(r"line (\d)", done.stdout) == ["1", "2"], done
