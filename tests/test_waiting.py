"""What is said of long work: no line before it is due, and what is left by what was done."""

import pytest

from acedit import waiting
from acedit.waiting import Countdown, duration


def test_lines_come_when_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now)
    said: list[str] = []
    told = Countdown(said.append, "windows", every=5)
    for now in (101.0, 104.9, 110.0, 114.0, 130.0):
        told(int(now - 100), 40, " (of text)" if now > 120 else "")
    assert said == ["10/40 windows, about 30 s left", "30/40 windows (of text), about 10 s left"]


def test_while_none_is_done_nothing_is_said_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Countdown(lambda text: said.append(text), "steps", every=0)
    said: list[str] = []
    told(0, 10)
    assert said == ["0/10 steps"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "1.5 min"), (3600, "60.0 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
