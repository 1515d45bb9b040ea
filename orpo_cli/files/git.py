"""The commit of a git work tree, asked of the `git` program where there is one."""

import os
import subprocess
from pathlib import Path


def commit_of(folder: Path, seconds: float) -> str | None:
    """Return the commit that a folder's work tree is at; None where it is in none, or git gives no answer in time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, env=environment, check=True,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
