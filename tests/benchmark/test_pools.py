"""Workers that die, that raise, and that do not: the same contract for every pool."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from acedit.benchmark.pools import Died, Inline, OnRay, Pool, Processes, shared_out, visible_gpus


class Toy:
    """Squares; kills its own process, the first time it is told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, item: tuple[str, int]) -> int:
        word, number = item
        flag = self._folder / f"died-{number}"
        if word == "die" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "raise":
            raise ValueError(f"cannot square {number}")
        return number * number


def drained(pool: Pool[Any, Any], items: list[tuple[str, int]]) -> tuple[list[int], int]:
    """Every result, an item whose worker died given out again; and how many died."""
    waiting, at, results, died = list(items), dict[int, Any](), [], 0
    while waiting or at:
        for worker in range(pool.size):
            if worker not in at and waiting:
                at[worker] = waiting.pop(0)
                pool.start(worker, at[worker])
        worker, result = pool.finished()
        item = at.pop(worker)
        if isinstance(result, Died):
            assert result.why
            died += 1
            waiting.append(item)
        else:
            results.append(result)
    return sorted(results), died


@pytest.fixture(params=["inline", "processes", "ray"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pool[Any, Any]]:
    make = partial(Toy, tmp_path)
    if request.param == "inline":
        yield Inline(make())
        return
    if request.param == "ray":
        pytest.importorskip("ray", reason="Ray is not installed (extra 'ray')")
        made: Pool[Any, Any] = OnRay(make, 2, "local")
    else:
        made = Processes(make, 2)
    yield made
    made.close()


def test_every_item_is_done_once(pool: Pool[Any, Any]) -> None:
    assert drained(pool, [("square", n) for n in range(7)]) == ([n * n for n in range(7)], 0)


def test_what_an_item_raises_comes_out_and_the_worker_goes_on(pool: Pool[Any, Any]) -> None:
    pool.start(0, ("raise", 3))
    with pytest.raises(ValueError, match="cannot square 3"):
        pool.finished()
    assert drained(pool, [("square", 4)]) == ([16], 0)


def test_a_killed_worker_costs_its_item_once(pool: Pool[Any, Any]) -> None:
    if isinstance(pool, Inline):
        pytest.skip("a worker in this process cannot be killed without it")
    items = [("square", 1), ("die", 2), ("square", 3), ("die", 4)]
    assert drained(pool, items) == ([1, 4, 9, 16], 2)


class Sees:
    """Says which GPUs its process sees."""

    def run(self, item: int) -> str:
        return ",".join(visible_gpus())


def test_workers_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert shared_out(visible_gpus(), 1, 4) == ["4", "5", "7", "4"]
    assert shared_out(visible_gpus(), 2, 3) == ["4,5", "7,4", "5,7"]
    pool: Processes[int, str] = Processes(Sees, 2, shared_out(visible_gpus(), 1, 2))
    try:
        pool.start(0, 0)
        pool.start(1, 1)
        assert dict(pool.finished() for _ in range(2)) == {0: "4", 1: "5"}
    finally:
        pool.close()


def test_a_worker_killed_from_outside_is_replaced(tmp_path: Path) -> None:
    pool: Processes[Any, Any] = Processes(partial(Toy, tmp_path), 2)
    try:
        for process, _ in pool._of:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)
        results, died = drained(pool, [("square", n) for n in range(4)])
        assert results == [0, 1, 4, 9]
        assert died == 2
    finally:
        pool.close()
