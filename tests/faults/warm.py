"""A process that has imported everything and forks one `orpo` for each request, so that a test can start and kill many.

A request is a JSON line: {"start": {"argv", "environment", "output", "injections", "limits"}} answers with a pid,
{"wait": pid} with the exit code, negative for the signal that killed it.
"""

import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from typing import Any


def child(request: dict[str, Any]) -> int:
    """What the fork does. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell in the background ignores it
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    for name, value in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    for injection in request["injections"]:
        inject(**injection)
    from orpo_cli.cli.main import main

    sys.argv = ["orpo", *request["argv"]]
    return main()


def inject(function: str, call: int, effect: str, of: str = "") -> None:
    """Let the Nth call of a function kill the process, or fail as the named error of `errno` would have it, or more.

    Args:
        function: dotted, as it is looked up where it is called: `os.fsync`.
        effect: `kill` before the call, `kill after` it, the name of an error number, that of a signal that comes before
            the call, `one second` or `a hundred seconds` that pass before it, `nan` or `bad slope` for `measure`
            (see `with_bad_token`), `nothing` or `times 1000` for what the call returns.
        of: a regex; calls without an argument in whose text it is found are not counted.
    """
    import errno
    import pkgutil

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
        if effect in ("nan", "bad slope"):
            return with_bad_token(effect, original, *args, **kwargs)
        if effect == "exit 0":
            os._exit(0)
        if effect == "bug":
            raise RuntimeError("a bug")
        if effect in ("one second", "a hundred seconds"):
            time.sleep(1 if effect == "one second" else 100)
            return original(*args, **kwargs)
        if effect == "nothing":
            return {}
        if effect == "times 1000":
            return 1000 * original(*args, **kwargs)
        number = getattr(errno, effect)
        raise OSError(number, os.strerror(number), str(args[0]) if args else None)

    setattr(owner, name, counted)


def with_bad_token(effect: str, measure: Any, training: Any, store: Any, pairs: Any, batch: Any, *rest: Any) -> Any:
    """From now on a batch of just these pairs has a chosen token whose log-probability, or its slope, is not finite."""
    import torch

    from orpo_cli.data.collation import CHOSEN
    from orpo_cli.models.scorer import Scorer

    ids, forward = batch.scored.ids.clone(), Scorer.forward

    def broken(scorer: Any, other: Any) -> Any:
        logps = forward(scorer, other)
        if not torch.equal(other.scored.ids, ids):
            return logps
        second = (other.scored.roles == CHOSEN).cumsum(0) == 2
        bad = torch.nan if effect == "nan" else 0 * torch.sqrt((logps - logps).abs())  # infinite slope times 0
        return logps + torch.where(second & (other.scored.roles == CHOSEN), bad, 0.0)

    Scorer.forward = broken
    return measure(training, store, pairs, batch, *rest)


def serve() -> None:
    """Answer requests until there are no more."""
    import datasets  # noqa: F401 - imported here once, not in each fork
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import orpo_cli.cli.compose
    import orpo_cli.cli.job
    import orpo_cli.cli.main
    import orpo_cli.cli.resume
    import orpo_cli.cli.train
    import orpo_cli.cli.verify  # noqa: F401

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
