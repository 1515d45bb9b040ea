"""Work on the blocks of a file in several processes, results in the order of the blocks, never more than a few held.

The processes are started afresh, so that they hold no copy of this one; what they need is sent to them once. Each
answers one thread of this process over a pipe of its own, so that when either end dies, the other one notices; the
standard library's pool of processes waits forever where one is killed while it sends its result.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, TypeVar

from orpo_cli.errors import InterruptedRunError, OrpoError, OutOfMemoryError
from orpo_cli.machine.threads import usable_cores

WORTH_STARTING = 4_000_000
"""Bytes of input below which starting processes (a second or two) takes longer than the work."""

_HELD_PER_WORKER = 2
Result = TypeVar("Result")


def worker_count(size: int, wanted: int | None) -> int:
    """Return how many processes to use for so many bytes: as many as wanted, or one for each core if they pay."""
    return wanted or (usable_cores() if size >= WORTH_STARTING else 1)


class Workers:
    """Call a function on many blocks in several processes, with the same first argument. Use as a context manager.

    Args:
        shared: the first argument of every call.
        count: the number of processes; with 1 the calls are made in this one.
    """

    def __init__(self, shared: Any, count: int) -> None:
        self._shared = shared
        self._count = count
        self._threads: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()
        self._has_ended = False
        self._processes: list[tuple[BaseProcess, Connection]] = []
        self._free: SimpleQueue[tuple[BaseProcess, Connection]] = SimpleQueue()

    def __enter__(self) -> "Workers":
        if self._count > 1:
            resource_tracker.ensure_running()  # would undo the blocking of SIGINT if it were started later
            self._threads = ThreadPoolExecutor(self._count)
            try:
                self._threads.submit(self._start).result()
            except BaseException:
                self.__exit__()
                raise
        return self

    def _start(self) -> None:
        """Start the processes, in a thread: an interrupt of the main thread leaves none half started, with a traceback.

        They inherit that SIGINT is blocked: Ctrl-C reaches them too, but ending them is this process's business.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        context = multiprocessing.get_context("spawn")
        with self._starting:
            while len(self._processes) < self._count and not self._has_ended:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, self._shared), daemon=True)
                process.start()
                theirs.close()
                self._processes.append((process, ours))
                self._free.put((process, ours))

    def __exit__(self, *_: object) -> None:
        self._has_ended = True
        with self._starting:
            for process, _connection in self._processes:
                process.kill()  # what they may still be at is not wanted any more
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process, connection in self._processes:
            process.join()
            connection.close()

    def results_in_order(
        self, work: Callable[..., Result], blocks: Iterable[tuple[tuple[Any, ...], int]]
    ) -> Iterator[tuple[Result, int]]:
        """Yield `work(shared, *arguments)` for each block's arguments, with the number that came with them.

        Raises:
            OutOfMemoryError: if a process was killed.
        """
        if self._threads is None:
            for arguments, number in blocks:
                yield work(self._shared, *arguments), number
            return
        waiting: deque[tuple[Future[Result], int]] = deque()
        for arguments, number in blocks:
            waiting.append((self._threads.submit(self._ask, work, arguments), number))
            if len(waiting) > _HELD_PER_WORKER * self._count:
                first, number_of_first = waiting.popleft()
                yield first.result(), number_of_first
        for first, number_of_first in waiting:
            yield first.result(), number_of_first

    def _ask(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Have a free process do the work; there is one for each thread."""
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
    if exit_code in (-signal.SIGTERM, -signal.SIGHUP):  # this process gets the same signal, perhaps a moment later
        number = signal.Signals(-exit_code)
        return InterruptedRunError(f"a process that prepared the data was ended by {number.name}", number)
    return OrpoError(f"a process that prepared the data ended with exit code {exit_code}; data.workers=1 may say why")


def _serve(connection: Connection, shared: Any) -> None:
    """Answer, in a process, until the parent hangs up or is gone."""
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
