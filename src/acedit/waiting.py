"""What is said of work that takes minutes: how much is done, and how long the rest will take.

told = Countdown(print, "windows of text")
told(320, 1536)        # "320/1536 windows of text, about 40 s left", if a line is due
"""

import time
from collections.abc import Callable

EVERY = 5.0  # seconds between two lines


class Countdown:
    """Tells `tell` of a count, at most once in `every` seconds; the first line waits as long."""

    def __init__(self, tell: Callable[[str], None], what: str, *, every: float = EVERY) -> None:
        self._tell, self._what, self._every = tell, what, every
        self._began = self._last = time.monotonic()

    def __call__(self, done: int, total: int, more: str = "") -> None:
        """`done` of `total` are done; more: what else there is to say."""
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        self._tell(counted(done, total, f"{self._what}{more}", now - self._began))


def counted(done: int, total: int, what: str, seconds: float) -> str:
    """`done` of `total` took so many seconds: that, and, once some are done, how long the rest will take."""
    said = f"{done}/{total} {what}"
    return f"{said}, about {duration(seconds / done * (total - done))} left" if done else said


def duration(seconds: float) -> str:
    """As people say it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
