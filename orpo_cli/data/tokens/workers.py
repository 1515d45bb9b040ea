"""Work on the blocks of a file in several processes, results in the order of the blocks, never more than a few held.

The processes are started afresh, so that they hold no copy of this one; what they need is sent to them once. Each
answers one thread of this process over a pipe: when either end dies, the other one notices.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, TypeVar

from orpo_cli.errors import InterruptedRunError, OrpoError, OutOfMemoryError

WORTH_STARTING = 4_000_000
"""Bytes of input below which starting processes (a second or two) takes longer than the work."""

_HELD_PER_WORKER = 2
Result = TypeVar("Result")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worthwhile(size: int, wanted: int | None) -> int:
    """How many processes to start for so many bytes of input: as many as wanted, else one for each core if they pay."""
    return wanted or (cores() if size >= WORTH_STARTING else 1)


class Workers:
    """Calls a function on many blocks, each with the same first argument. Use as a context manager.

    Args:
        shared: the first argument of every call.
        count: processes; with 1 the calls are made in this one.
    """

    def __init__(self, shared: Any, count: int) -> None:
        self._shared = shared
        self._count = count
        self._threads: ThreadPoolExecutor | None = None
        self._processes: list[tuple[BaseProcess, Connection]] = []
        self._free: SimpleQueue[tuple[BaseProcess, Connection]] = SimpleQueue()

    def __enter__(self) -> "Workers":
        if self._count > 1:
            self._threads = ThreadPoolExecutor(self._count)
            try:
                with _deaf_to_signals():
                    for _ in range(self._count):
                        self._start()
            except BaseException:
                self.__exit__()
                raise
        return self

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._shared), daemon=True)
        process.start()
        theirs.close()
        self._processes.append((process, ours))
        self._free.put((process, ours))

    def __exit__(self, *_: object) -> None:
        for process, _connection in self._processes:
            process.kill()  # what they may still be at is not wanted any more
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process, connection in self._processes:
            process.join()
            connection.close()

    def map(
        self, work: Callable[..., Result], blocks: Iterable[tuple[tuple[Any, ...], int]]
    ) -> Iterator[tuple[Result, int]]:
        """`work(shared, *arguments)` for each block's arguments, in order, each with the number that came with them.

        Raises:
            OutOfMemoryError: a process was killed.
        """
        if self._threads is None:
            for arguments, done in blocks:
                yield work(self._shared, *arguments), done
            return
        waiting: deque[tuple[Future[Result], int]] = deque()
        for arguments, done in blocks:
            waiting.append((self._threads.submit(self._ask, work, arguments), done))
            if len(waiting) > _HELD_PER_WORKER * self._count:
                first, number = waiting.popleft()
                yield first.result(), number
        while waiting:
            first, number = waiting.popleft()
            yield first.result(), number

    def _ask(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Have a free process do it; there is one for each thread."""
        process, connection = self._free.get()
        try:
            connection.send((work, arguments))
            succeeded, result = connection.recv()
        except (EOFError, OSError):
            process.join()
            raise _death(process.exitcode) from None
        finally:
            self._free.put((process, connection))
        if not succeeded:
            raise result
        return result


def _death(exit_code: int | None) -> OrpoError:
    if exit_code == -signal.SIGKILL:
        return OutOfMemoryError(
            "a process that prepared the data was killed, as happens when memory runs out; "
            "data.workers=1 prepares in one process"
        )
    if exit_code in (-signal.SIGTERM, -signal.SIGHUP):  # this process is told the same, perhaps a moment later
        number = signal.Signals(-exit_code)
        return InterruptedRunError(f"a process that prepared the data was ended by {number.name}", number)
    return OrpoError(f"a process that prepared the data ended with exit code {exit_code}; data.workers=1 may say why")


@contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """This process hears them afterwards: one that is half started would end in a traceback.

    Processes started meanwhile never hear Ctrl-C, which a terminal sends to all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    resource_tracker.ensure_running()  # as it starts, it would open our ears
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    listening = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _frame: heard.append(number)) for number in listening}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])


def _serve(connection: Connection, shared: Any) -> None:
    """What a process does: it answers until its parent hangs up, or is gone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    try:
        while True:
            work, arguments = connection.recv()
            connection.send(_answer(work, shared, arguments))
    except (EOFError, OSError):
        return


def _answer(work: Callable[..., Any], shared: Any, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, work(shared, *arguments)
    except Exception as error:
        error.add_note("in a process that prepares the data:\n" + "".join(traceback.format_tb(error.__traceback__)))
        return False, error
