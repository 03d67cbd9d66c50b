"""Workers for a benchmark's items: in this process, in processes of this machine, or on Ray.

    pool = Processes(partial(Worker, job), size=2)
    pool.start(0, item)
    worker, outcomes = pool.finished()      # Died(why) where the worker did; it is replaced

Whoever drives a pool gives each worker one item at a time. What an item raises comes out of `finished`.

Footgun: `make` goes to other processes, so it and the items must pickle; nothing of it is kept on disk.
"""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch

from acedit.errors import UserError, first_line

log = logging.getLogger("acedit")

VISIBLE = "CUDA_VISIBLE_DEVICES"
WAIT = 60.0  # seconds without a result, after which it is said that no worker has been placed

I = TypeVar("I", contravariant=True)  # noqa: E741  an item
O = TypeVar("O", covariant=True)  # noqa: E741  what comes of it


@dataclass(frozen=True)
class Died:
    """A worker's end, and all that is known of it in one line."""

    why: str


@runtime_checkable
class Does(Protocol[I, O]):
    """A worker: holds what is dear to make, and does one item at a time."""

    def run(self, item: I) -> O: ...


@runtime_checkable
class Pool(Protocol[I, O]):
    """Workers 0 to `size` - 1, each with one item at most."""

    size: int

    def start(self, worker: int, item: I) -> None: ...
    def finished(self) -> tuple[int, O | Died]: ...
    def close(self) -> None: ...


class Inline(Generic[I, O]):
    """One worker, in this process: an item is done when its end is waited for."""

    size = 1

    def __init__(self, worker: Does[I, O]) -> None:
        self._worker = worker
        self._items: list[I] = []

    def start(self, worker: int, item: I) -> None:
        self._items.append(item)

    def finished(self) -> tuple[int, O | Died]:
        return 0, self._worker.run(self._items.pop())

    def close(self) -> None:
        pass


class Processes(Generic[I, O]):
    """A process a worker, spawned; one that dies is spawned anew.

    gpus: the CUDA devices each worker sees (`shared_out`), if not all.
    """

    def __init__(self, make: Callable[[], Does[I, O]], size: int, gpus: Sequence[str] = ()) -> None:
        self.size = size
        self._make = make
        self._gpus = gpus
        self._context = multiprocessing.get_context("spawn")
        self._of: list[tuple[Any, Connection]] = [self._spawn(worker) for worker in range(size)]
        self._busy: set[int] = set()

    def _spawn(self, worker: int) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self._make, theirs), daemon=True)
        with _seeing(self._gpus[worker] if self._gpus else None):
            process.start()
        theirs.close()
        return process, ours

    def start(self, worker: int, item: I) -> None:
        self._busy.add(worker)
        # One that died while idle is seen by `finished`, as its end of the pipe is closed.
        with suppress(OSError):
            self._of[worker][1].send(item)

    def finished(self) -> tuple[int, O | Died]:
        pipes = {self._of[worker][1]: worker for worker in self._busy}
        pipe = next(p for p in pipes if p in wait(list(pipes)))
        worker = pipes[pipe]
        self._busy.discard(worker)
        try:
            result = pipe.recv()
        except (EOFError, OSError):
            process = self._of[worker][0]
            process.join()
            self._of[worker] = self._spawn(worker)
            return worker, Died(_ended(process.exitcode))
        if isinstance(result, BaseException):
            raise result
        return worker, result

    def close(self) -> None:
        for process, pipe in self._of:
            pipe.close()
            process.terminate()
        for process, _ in self._of:
            process.join()


def _ended(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as the system does when memory runs out" if name == "SIGKILL" else name


def visible_gpus() -> list[str]:
    """The CUDA devices this process sees, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get(VISIBLE)
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def shared_out(devices: Sequence[str], each: int, workers: int) -> list[str]:
    """`each` of the devices for every worker, in turn, as CUDA_VISIBLE_DEVICES names them."""
    turn = cycle(devices)
    return [",".join(islice(turn, each)) for _ in range(workers)]


@contextmanager
def _seeing(gpus: str | None) -> Iterator[None]:
    """What is started meanwhile sees these CUDA devices, from before its first import on."""
    before = os.environ.get(VISIBLE)
    try:
        if gpus is not None:
            os.environ[VISIBLE] = gpus
        yield
    finally:
        if before is not None:
            os.environ[VISIBLE] = before
        else:
            os.environ.pop(VISIBLE, None)


def _serve(make: Callable[[], Does[Any, Any]], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    logging.getLogger("acedit").addHandler(logging.NullHandler())  # and speaks for us
    logging.getLogger("acedit").propagate = False
    worker: Does[Any, Any] | None = None
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            worker = worker or make()
            pipe.send(worker.run(item))
        except Exception as error:
            pipe.send(error)


class OnRay(Generic[I, O]):
    """An actor a worker, on a Ray cluster; one that dies is made anew."""

    def __init__(
        self, make: Callable[[], Does[I, O]], size: int, address: str, *, cpus: int = 1, gpus: float = 0
    ) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--ray needs Ray: pip install 'acedit[ray]'") from None
        self._ray = ray
        self.size = size
        self._make = make
        self._cpus, self._gpus = cpus, gpus
        try:
            ray.init(
                address=None if address == "local" else address,
                num_cpus=cpus * size if address == "local" else None,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--ray {address}: {error}; give a cluster's address, or 'local'") from None
        self._actors = [self._actor() for _ in range(size)]
        self._busy: dict[Any, int] = {}
        self._placed = False

    def _actor(self) -> Any:
        actor = self._ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0)(_Actor)
        return actor.remote(self._make)

    def start(self, worker: int, item: I) -> None:
        self._busy[self._actors[worker].run.remote(item)] = worker

    def finished(self) -> tuple[int, O | Died]:
        ready: Any = None
        while ready is None:
            found, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=WAIT)
            if found:
                (ready,) = found
            elif not self._placed:
                log.warning("no result yet; if Ray has placed no worker, its CPUs or GPUs are taken")
        self._placed = True
        worker = self._busy.pop(ready)
        try:
            result: O = self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if error.cause is not None else error from None
        except self._ray.exceptions.RayError as error:
            self._actors[worker] = self._actor()
            return worker, Died(first_line(error))
        return worker, result

    def close(self) -> None:
        self._ray.shutdown()


class _Actor:
    """A worker on Ray, made where it runs."""

    def __init__(self, make: Callable[[], Does[Any, Any]]) -> None:
        self._make = make
        self._worker: Does[Any, Any] | None = None

    def run(self, item: Any) -> Any:
        # Made here, so that what making it raises comes out as an item's error would.
        self._worker = self._worker or self._make()
        return self._worker.run(item)
