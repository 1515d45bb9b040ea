"""The files of a run's folder: config.yaml, run.json, ledger.jsonl, metrics.jsonl, samples.jsonl."""

import contextlib
import fcntl
import json
import math
import os
import platform
import shlex
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from orpo_cli import __version__
from orpo_cli.errors import OutputError, WriteError
from orpo_cli.files import untrusted
from orpo_cli.training.events import Evaluated, Event, Sampled, StepDone, StepSkipped

LOCK = "run.lock"
LOG = "train.log"
LEFTOVER = ".tmp-"
"""How names of unfinished files begin; those of a dead run are removed by the next."""
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
MODEL = "model"
EVALUATED = ("loss", "nll", "or_loss", "log_odds_ratio", "accuracy", "margin", "logps/chosen", "logps/rejected")
"""Metrics that every evaluation has, in the order in which they are shown."""

_OWN_FILES = (LOCK, LOG, METRICS, SAMPLES, "config.yaml", "run.json", "ledger.jsonl")
_OWN_DIRECTORIES = ("checkpoints", MODEL)
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "hydra-core")


def claim(folder: Path, resuming: bool) -> IO[str]:
    """Make `folder` this run's own, until the returned file is closed or the process ends.

    Raises:
        OutputError: it cannot be written to, another run works in it, or it already holds files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holds = sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, LOG))
        foreign = [name for name in holds if not name.startswith(LEFTOVER)]
        if foreign and not resuming:
            _refuse_running(folder)
            way_on = f", or {shlex.quote(f'resume={folder}')} to go on with the run in it"
            raise OutputError(
                f"{folder}: is not empty (it holds {', '.join(foreign[:3])}); choose another output_dir"
                f"{way_on if 'config.yaml' in foreign else ''}"
            )
        if wrong := in_the_way(folder):
            raise OutputError(f"{folder}: cannot be the folder of a run: {', '.join(wrong)}")
        lock = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write to the run folder {folder}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(lock, folder / LOCK):
            raise BlockingIOError
        _probe(folder)
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
    except BlockingIOError:
        lock.close()
        _refuse_running(folder)
        raise OutputError(
            f"{folder}: another run began in this folder at the same time, or orpo verify reads it; try again later"
        ) from None
    except OSError as error:
        lock.close()
        raise OutputError(f"cannot write to the run folder {folder}: {error.strerror}") from None
    return lock


def in_the_way(folder: Path) -> list[str]:
    """Which files and directories of a run are something else in `folder`, in words: nothing is read from or written to
    a pipe or a device, or to a file that a link leads to."""
    wrong = [
        f"{name} is not a file"
        for name in _OWN_FILES
        if os.path.lexists(folder / name) and ((folder / name).is_symlink() or not (folder / name).is_file())
    ]
    wrong += [
        f"{name} is not a directory"
        for name in _OWN_DIRECTORIES
        if os.path.lexists(folder / name) and not (folder / name).is_dir()
    ]
    return wrong


def _is_at(lock: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at `path`: a run that ends before it has begun removes its lock."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def _refuse_running(folder: Path) -> None:
    """Args: folder: of a run, maybe one that is going on.

    Raises:
        OutputError: it is.
    """
    with undisturbed(folder):
        pass


@contextlib.contextmanager
def undisturbed(folder: Path) -> Iterator[None]:
    """While the block runs, no run works in the folder; a copy of a run, which has no lock, is nobody's.

    Raises:
        OutputError: one does.
    """
    with contextlib.ExitStack() as stack:
        if (folder / LOCK).is_file():
            with contextlib.suppress(FileNotFoundError, PermissionError):
                lock = stack.enter_context((folder / LOCK).open(encoding="utf-8", errors="replace"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    owner = lock.read().strip() or "unknown"
                    raise OutputError(
                        f"{folder}: another run works in this folder ({owner}); try again later"
                    ) from None
        yield


def _probe(folder: Path) -> None:
    """Write a small file to the disk and remove it; a full or read-only file system is found now, not at a save."""
    probe, path = tempfile.mkstemp(dir=folder, prefix=LEFTOVER)
    try:
        os.write(probe, b"probe")
        os.fsync(probe)
    finally:
        os.close(probe)
        Path(path).unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is never half there."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that is never half there."""
    with _replacing(path) as stream:
        stream.write(text.encode("utf-8"))


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """What is written in the block is at `path` after it, on the disk; before, what was there."""
    temporary = path.with_name(f"{LEFTOVER}{path.name}")
    temporary.unlink(missing_ok=True)  # it may be a link to something else
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # which an error of writing lacks
        raise


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; nothing where the file is missing or damaged."""
    try:
        return untrusted.read_json(path, untrusted.MAX_OWN_BYTES)
    except (OSError, ValueError):
        return {}


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` took all its steps, by its run.json."""
    return read_json(folder / "run.json").get("finished") is True


def note_model(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Note in the run.json of a run the files of the model that it is about to leave, by path inside. What it may have
    left before stays noted: that lies there until the new one does."""
    listing = {f"{MODEL}/{name}": entry for name, entry in files.items()}
    _note(folder, {"model_files": [*(other for other in model_listings(folder) if other != listing), listing]})


def note_end(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Note in the run.json of a run that it took all its steps, and size and checksum of its other files, by path."""
    left = model_listings(folder)[-1:]
    _note(folder, {"files": files_left(folder) | files, "model_files": left, "finished": True})


def _note(folder: Path, values: dict[str, Any]) -> None:
    path = folder / "run.json"
    write_json(path, read_json(path) | values)


def files_left(folder: Path) -> dict[str, Any]:
    """Size and checksum of the files that a run does not change any more, by path; none where run.json is damaged."""
    files = read_json(folder / "run.json").get("files")
    return files if isinstance(files, dict) else {}


def model_listings(folder: Path) -> list[dict[str, Any]]:
    """The same of the files of its model: as it may lie there, the newest last."""
    listings = read_json(folder / "run.json").get("model_files")
    return [part for part in (listings if isinstance(listings, list) else []) if isinstance(part, dict)]


def went_on(folder: Path) -> list[dict[str, Any]]:
    """What changed each time the run in `folder` was resumed, by its run.json: after which step, which settings."""
    noted = read_json(folder / "run.json").get("went_on")
    return [
        entry
        for entry in (noted if isinstance(noted, list) else [])
        if isinstance(entry, dict)
        and type(entry.get("after_step")) is int
        and isinstance(entry.get("changed"), dict)
        and _is_text(json.dumps(entry, ensure_ascii=False))
    ]


def write_ledger(path: Path, lines: Iterable[bytes]) -> None:
    """Write the records of the ledger, which come as JSON Lines, into a file that is never half there."""
    with _replacing(path) as stream:
        stream.writelines(lines)


def versions() -> dict[str, str]:
    """Of orpo, Python and the packages whose change can change a number."""
    return {"orpo": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in _PACKAGES
    }


def machine() -> dict[str, Any]:
    """What this run computes on, as far as the operating system tells."""
    return {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()}


class Recorder:
    """Appends metrics.jsonl and samples.jsonl, a line an event; a checkpoint puts them on the disk before itself.

    Args:
        folder: the run's folder.
        log_every: record every Nth step.
        steps_done: on resume, the step of the checkpoint; lines of later steps are dropped, they will come again.
        evaluation_due: on resume, the evaluation after that step will come again too.
        on_failure: told which lines are left out, and once why one could not be written; that is written with the next
            one that can be.
    """

    def __init__(
        self,
        folder: Path,
        log_every: int,
        on_failure: Callable[[str], None],
        steps_done: int = 0,
        evaluation_due: bool = False,
    ) -> None:
        self._folder = folder
        self._log_every = log_every
        self._on_failure = on_failure
        self._waiting: dict[str, list[str]] = {METRICS: [], SAMPLES: []}
        last = steps_done if steps_done else -1
        _keep(
            folder / METRICS,
            lambda record: (
                record["step"] <= last and not (evaluation_due and record["kind"] == "eval" and record["step"] == last)
            ),
            on_failure,
        )
        # the last sample comes again, even to a run that was finished
        _keep(folder / SAMPLES, lambda record: bool(record["step"] < steps_done), on_failure)

    def show(self, event: Event) -> None:
        """Record a step, an evaluation or a sample; other events leave no line."""
        match event:
            case StepDone(step=step, total_steps=total, metrics=metrics):
                if step % self._log_every == 0 or step in (1, total):
                    self._append(METRICS, {"kind": "step", "step": step, **metrics})
            case StepSkipped(step=step, report=report):
                self._append(METRICS, {"kind": "skipped", "step": step, "report": report})
            case Evaluated(step=step, metrics=metrics):
                self._append(METRICS, {"kind": "eval", "step": step, **metrics})
            case Sampled(step=step, prompt=prompt, answer=answer):
                self._append(SAMPLES, {"step": step, "prompt": prompt, "answer": answer})
            case _:
                pass

    def _append(self, name: str, record: dict[str, Any]) -> None:
        path, waiting = self._folder / name, self._waiting[name]
        waiting.append(json.dumps(record, ensure_ascii=False) + "\n")
        length = path.stat().st_size if path.is_file() else 0
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write("".join(waiting))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, length)
            if len(waiting) == 1:
                self._on_failure(f"{path}: {error.strerror}; its lines wait until it can be written")
            return
        waiting.clear()

    def finish(self) -> None:
        """Raises:
        WriteError: lines still wait; nothing else of the run is lost.
        """
        for name, waiting in self._waiting.items():
            if waiting:
                raise WriteError(f"{self._folder / name}: its last {len(waiting)} lines could not be written")


def read_lines(path: Path) -> list[tuple[int, dict[str, Any] | None]]:
    """Number and record of each line of metrics.jsonl or samples.jsonl that is not empty.

    None stands for one that is no record: cut short by a crash, or written by somebody else.
    """
    if not path.is_file():
        return []
    lines = enumerate(path.read_bytes().split(b"\n"), 1)
    return [(number, _record(line, path.name)) for number, line in lines if line]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl or samples.jsonl."""
    return [record for _, record in read_lines(path) if record is not None]


def _record(line: bytes, name: str) -> dict[str, Any] | None:
    """Args: name: of the file."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or isinstance(record.get("step"), float) or not _is_number(record.get("step")):
        return None
    if name == SAMPLES:
        texts = [record.get(key) for key in ("prompt", "answer")]
        return record if len(record) == 3 and all(_is_text(text) for text in texts) else None
    kind = record.get("kind")
    if kind == "skipped":
        return record if len(record) == 3 and _is_text(record.get("report")) else None
    if kind not in ("step", "eval") or (kind == "eval" and not record.keys() >= set(EVALUATED)):
        return None
    return record if all(_is_text(key) and _is_number(record[key]) for key in record if key != "kind") else None


def _is_number(value: Any) -> bool:
    """Whether it is one that a metric can have: finite, and as an int one that a float can hold."""
    return (isinstance(value, float) and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 53)


def _is_text(value: Any) -> bool:
    """Whether it is a string that UTF-8 can hold; JSON can escape half of a character."""
    return isinstance(value, str) and value == value.encode("utf-8", "replace").decode()


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool], on_failure: Callable[[str], None]) -> None:
    """Drop the other records of a file, and lines that are none."""
    if not path.is_file():
        return
    lines = read_lines(path)
    cut = [] if path.read_bytes().endswith(b"\n") else lines[-1:]  # by the end of the run that wrote it
    foreign = [str(number) for number, record in lines if record is None and (number, record) not in cut]
    if foreign:
        on_failure(f"{path}: left out what is no record of a run: line {', '.join(foreign[:10])}")
    kept = [record for _, record in lines if record is not None and wanted(record)]
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
