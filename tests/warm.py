"""A process that has imported everything and forks one `orpo` for each request, so that a test can start and kill many.

    python warm.py ADDRESS                       listens there, and says `ready`
    python warm.py ADDRESS train lambda=0.2      is that `orpo` to whoever started it: output, signals, exit code

A request is JSON, {"argv", "directory", "environment", "blocked", "injections", "limits"}, with the descriptors of
stdin, stdout and stderr. The answer is a pid and, at the end, the exit code, negative for the signal that killed it.
"""

import contextlib
import functools
import json
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NoReturn


def ask(address: str, argv: list[str], output: tuple[int, int, int] = (0, 1, 2), **how: Any) -> socket.socket:
    """Start an `orpo` here and now; what is received next is its pid."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
    asked = {"argv": argv, "directory": os.getcwd(), "blocked": blocked, "injections": [], "limits": {}, **how}  # noqa: PTH109
    socket.send_fds(connection, [json.dumps(asked).encode()], output)
    return connection


def command(address: str, arguments: Sequence[str]) -> list[str]:
    """In place of `orpo_cli.machine.processes.command`: a process that stands in for a fork of the warm one."""
    return [sys.executable, "-S", __file__, address, "train", *arguments]


def stand_in(address: str, argv: list[str]) -> int:
    """Be the `orpo` that is asked for, to the process that started this one. Returns the exit code."""
    connection = ask(address, argv, environment=dict(os.environ))
    pid = int(connection.recv(64))

    def tell(number: int, _frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, tell)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    code = int(connection.recv(64))
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def answer(connection: socket.socket) -> None:
    """Start what is asked for and say how it ends; or end with whoever asked: then the `orpo` has lost its parent."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    packet, descriptors, *_ = socket.recv_fds(connection, 2**20, 3)
    address, parent, pid = connection.getsockname(), os.getpid(), os.fork()
    if pid == 0:
        connection.close()
        be_orpo(json.loads(packet), descriptors, parent, address)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.send(str(pid).encode())
    ended = os.pidfd_open(pid)
    if ended in select.select([ended, connection], [], [])[0]:
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def be_orpo(request: dict[str, Any], descriptors: list[int], parent: int, address: str) -> NoReturn:
    """What the fork does, to its end; processes that it starts are forks too."""
    import resource
    import traceback

    from orpo_cli.cli import forked_jobs, main
    from orpo_cli.machine import processes

    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell in the background ignores it
        signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(request["directory"])
        os.environ.update(request["environment"])
        if processes.PARENT in request["environment"]:
            os.environ[processes.PARENT] = str(parent)
        processes.command = functools.partial(command, address)
        forked_jobs.are_possible = lambda: False
        for name, value in request["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        for injection in request["injections"]:
            inject(**injection)
        sys.argv = ["orpo", *request["argv"]]
        code = main.main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def inject(function: str, call: int, effect: str, of: str = "") -> None:
    """Let the Nth call of a function kill the process, or fail as the named error of `errno` would have it, or more.

    Args:
        function: dotted, as it is looked up where it is called: `os.fsync`.
        effect: `kill` before the call, `kill after` it, the name of an error number, that of a signal that comes before
            the call, `one second` or `a hundred seconds` that pass before it, `nan` or `bad gradient` (see
            `with_bad_token`, for `micro_batch_loss`), `memory is given back` to the system once free, or `is taken`,
            `nothing` or `times 1000` for what the call returns.
        of: a regex; calls without an argument in whose text it is found are not counted.
    """
    import ctypes
    import errno
    import pkgutil
    import re
    import time

    owner_name, _, name = function.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    original = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        counts = not of or any(re.search(of, str(argument)) for argument in args)
        calls += counts
        if not counts or calls != call:
            return original(*args, **kwargs)
        if effect == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if effect == "kill after":
            original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        if effect in signal.Signals.__members__:
            os.kill(os.getpid(), signal.Signals[effect])
            return original(*args, **kwargs)
        if effect in ("nan", "bad gradient"):
            return with_bad_token(effect, original, *args, **kwargs)
        if effect == "exit 0":
            os._exit(0)
        if effect == "bug":
            raise RuntimeError("a bug")
        if effect in ("one second", "a hundred seconds"):
            time.sleep(1 if effect == "one second" else 100)
            return original(*args, **kwargs)
        if effect == "memory is given back":
            ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: what is larger is a mapping of its own
            return original(*args, **kwargs)
        if effect == "memory is taken":
            taken = b"x" * 2**28
            return original(*args, **kwargs) if taken else None
        if effect == "nothing":
            return {}
        if effect == "times 1000":
            return 1000 * original(*args, **kwargs)
        number = getattr(errno, effect)
        raise OSError(number, os.strerror(number), str(args[0]) if args else None)

    setattr(owner, name, counted)


def with_bad_token(effect: str, original: Any, training: Any, store: Any, part: Any, *rest: Any) -> Any:
    """Give a chosen token of these very pairs, from now on, a log-probability or gradient that is not finite."""
    import torch

    from orpo_cli.data.collation import CHOSEN
    from orpo_cli.models.scorer import Scorer

    ids, forward = part.batch.scored.ids.clone(), Scorer.forward

    def broken(scorer: Any, other: Any) -> Any:
        logps = forward(scorer, other)
        if not torch.equal(other.scored.ids, ids):
            return logps
        second = (other.scored.roles == CHOSEN).cumsum(0) == 2
        bad = torch.nan if effect == "nan" else 0 * torch.sqrt((logps - logps).abs())  # infinite gradient times 0
        return logps + torch.where(second & (other.scored.roles == CHOSEN), bad, 0.0)

    Scorer.forward = broken
    return original(training, store, part, *rest)


def serve(address: str) -> None:
    """Answer requests until stdin is closed."""
    import gc
    import importlib
    import pkgutil

    import datasets  # noqa: F401 - imported here once, not in each fork
    import peft  # noqa: F401
    import rensa  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import orpo_cli
    from orpo_cli.cli.main import main

    for module in pkgutil.walk_packages(orpo_cli.__path__, "orpo_cli."):
        needs_an_extra = module.name.startswith("orpo_cli.reporting.trackers.")
        if module.name != "orpo_cli.__main__" and not needs_an_extra:
            importlib.import_module(module.name)
    with (
        tempfile.NamedTemporaryFile("w", suffix=".json") as data,
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        data.write('[{"prompt": "Why?", "chosen": "So.", "rejected": "No."}]')
        data.flush()
        main(["train", "--cfg", "job"])  # fills the caches of Hydra
        main(["evaluate", "model=tiny", f"data={data.name}"])  # imports the rest; torch forbids backward passes here
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that answer
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    try:
                        answer(connection)
                    finally:
                        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1]) if len(sys.argv) == 2 else sys.exit(stand_in(sys.argv[1], sys.argv[2:]))
