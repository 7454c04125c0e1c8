"""A cable on which each frame takes its time, and some get lost. LIBRARY of tests; needs root and /dev/net/tun.

In place of `tc netem`, which not every kernel has: two TAP devices, one at each end, and a thread here that carries
each frame from one to the other `delay_s` later, in order. At most FRAMES_MAX frames are on their way; more are lost,
as in a switch whose memory is full.
"""

from __future__ import annotations

import collections
import fcntl
import os
import random
import select
import struct
import threading
import time

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 2, 0x1000
FRAME_BYTES_MAX = 65536
FRAMES_MAX = 10_000


class DelayedCable:
    def __init__(self, one: int, other: int, delay_s: float, seed: int = 0) -> None:
        """one, other: from `tap`; this cable's from now on."""
        self.delay_s = delay_s
        self.loss = 0.0  # part of the frames, each for itself
        self.carried = self.lost = 0
        self._ends = (one, other)
        self._to = {one: other, other: one}
        self._random = random.Random(seed)
        self._wake_r, self._wake_w = os.pipe()
        self._thread = threading.Thread(target=self._run, name="delayed-cable", daemon=True)
        self._thread.start()

    @staticmethod
    def tap(name: str) -> int:
        """Makes a TAP device in the namespace of this thread. It lives as long as the descriptor returned."""
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
        return fd

    def close(self) -> None:
        os.write(self._wake_w, b"!")
        self._thread.join()
        for fd in (*self._ends, self._wake_r, self._wake_w):
            os.close(fd)

    def _run(self) -> None:
        on_way: collections.deque[tuple[float, int, bytes]] = collections.deque()  # due, to, frame; one delay for all
        poll = select.poll()
        for fd in (*self._ends, self._wake_r):
            poll.register(fd, select.POLLIN)
        while True:
            wait_s = max(0.0, on_way[0][0] - time.monotonic()) if on_way else None
            for fd, _ in poll.poll(None if wait_s is None else wait_s * 1000):
                if fd == self._wake_r:
                    return
                self._take(fd, on_way)
            now = time.monotonic()
            while on_way and on_way[0][0] <= now:
                _, to, frame = on_way.popleft()
                try:
                    os.write(to, frame)
                    self.carried += 1
                except OSError:  # its far end is down, or full
                    self.lost += 1

    def _take(self, fd: int, on_way: collections.deque[tuple[float, int, bytes]]) -> None:
        due = time.monotonic() + self.delay_s
        for _ in range(64):
            try:
                frame = os.read(fd, FRAME_BYTES_MAX)
            except OSError:  # nothing more, or the device is down
                return
            if len(on_way) >= FRAMES_MAX or (self.loss and self._random.random() < self.loss):
                self.lost += 1
            else:
                on_way.append((due, self._to[fd], frame))
