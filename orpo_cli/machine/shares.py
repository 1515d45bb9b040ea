"""What each of several runs that work at the same time has of this machine: cores, memory, and GPUs of its own."""

import math
import os
import shutil
import subprocess

from orpo_cli.machine.threads import THREADS, choose_threads

SHARED_BY = "ORPO_SHARED_BY"
"""The variable in the environment that says how many runs share the memory of a device, this one among them."""

_DEVICES = "CUDA_VISIBLE_DEVICES"


def cuda_devices() -> list[str]:
    """Return the GPUs that a run started from here could use, as CUDA names them; torch is not asked, nor imported."""
    named = os.environ.get(_DEVICES)
    if named is not None:
        return [device for device in named.split(",") if device]
    tool = shutil.which("nvidia-smi")
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout if tool else ""
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    return [str(number) for number in range(count)]


def share(place: int, places: int, processes: int, devices: list[str]) -> dict[str, str]:
    """Return the environment of one of `places` runs, each of as many processes.

    Args:
        place: which one, from 0.
        devices: the GPUs that they have in common; several runs share one only where there are more runs than GPUs.
    """
    environment = {THREADS: os.environ.get(THREADS, "")}
    choose_threads(environment, places * processes)
    each = len(devices) // places
    own = devices[place * each : (place + 1) * each] if each else devices[place % len(devices) :][:1] if devices else []
    shared_by = math.ceil(places / len(devices)) if devices else places
    return environment | {SHARED_BY: str(shared_by)} | ({_DEVICES: ",".join(own)} if own else {})
