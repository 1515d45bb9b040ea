"""A process that has imported everything and forks one `orpo` for each request, so that a test can start and kill many.

A request is a JSON line: {"start": {"argv", "environment", "output", "injections", "limits"}} answers with a pid,
{"wait": pid} with the exit code, negative for the signal that killed it.
"""

import json
import os
import resource
import signal
import sys
import traceback
from typing import Any


def child(request: dict[str, Any]) -> int:
    """What the fork does. Returns the exit code."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    for name, value in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    for injection in request["injections"]:
        inject(**injection)
    from orpo_cli.cli.main import main

    return main(request["argv"])


def inject(function: str, call: int, effect: str) -> None:
    """Let the Nth call of a function kill the process, or fail as the named error of `errno` would have it.

    Args:
        function: dotted, as it is looked up where it is called: `os.fsync`.
        effect: `kill` before the call, `kill after` it, or the name of an error number.
    """
    import errno
    import importlib

    module_name, _, name = function.rpartition(".")
    module = importlib.import_module(module_name)
    original = getattr(module, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return original(*args, **kwargs)
        if effect == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if effect == "kill after":
            original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, effect)
        raise OSError(number, os.strerror(number), str(args[0]) if args else None)

    setattr(module, name, counted)


def serve() -> None:
    """Answer requests until there are no more."""
    import datasets  # noqa: F401 - imported here once, not in each fork
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import orpo_cli.cli.job
    import orpo_cli.cli.train  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            os.close(0)
            os.open(os.devnull, os.O_RDONLY)
            code = 70
            try:
                code = child(request["start"])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
