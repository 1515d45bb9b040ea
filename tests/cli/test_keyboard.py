"""Keys that are typed while a screen is drawn."""

import os
import pty
import sys

CODE = """
import select, sys
from orpo_cli.cli.keyboard import quiet_keys
with quiet_keys():
    print("ready", flush=True)
    select.select([sys.stdin], [], [])
print("loud", flush=True)
print("read", input(), flush=True)
"""


def test_keys_are_neither_shown_nor_left_to_the_shell() -> None:
    """While the block runs; after it the terminal is as it was: what is typed is shown, and read by lines."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", CODE])
    said = b""

    def until(word: bytes) -> None:
        nonlocal said
        while word not in said:
            said += os.read(terminal, 1000)

    until(b"ready")
    os.write(terminal, b"xyz\x1b[A\n")
    until(b"loud\r\n")
    os.write(terminal, b"abc\n")
    until(b"read abc")
    assert said.split() == [b"ready", b"loud", b"abc", b"read", b"abc"]
    assert os.waitpid(child, 0)[1] == 0
