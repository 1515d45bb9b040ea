"""The folder of a run: the names of the files and directories in it, its lock, and what its files say.

A `RunFolder` reads each of config.yaml, run.json, metrics.jsonl and samples.jsonl once, when it is first asked. What a
checkpoint holds is in checkpoints/lookup.py, the names of the records in reporting/metrics_file.py.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import socket
import tempfile
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from orpo_cli.config.config_yaml import SavedConfig, keys_since, load_saved_config, read_saved_config, with_keys
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import ConfigError, InputNotFoundError, OutputError
from orpo_cli.files.manifest import size_and_checksum
from orpo_cli.files.untrusted import MAX_OWN_BYTES, read_json
from orpo_cli.files.writing import LEFTOVER, write_json
from orpo_cli.quoting import first_few, resume_command
from orpo_cli.reporting.metrics_file import METRICS, SAMPLES, Lines, MetricsFile, is_text, read_lines

MODEL, CHECKPOINTS, EVALUATIONS = "model", "checkpoints", "evaluations"
_RUN_ID = re.compile(r"[0-9a-f]{12}")
SWEEP = "sweep.json"
"""The file in the folder of a sweep: what was typed, in which directory, and the names of its jobs."""

_CONFIG, RECORD, _LEDGER, _LOG, _LOCK = "config.yaml", "run.json", "ledger.jsonl", "train.log", "run.lock"
REPORT = "report.html"
_FILES = (_LOCK, _LOG, METRICS, SAMPLES, _CONFIG, RECORD, _LEDGER, REPORT)


def is_run_folder(names: Collection[str]) -> bool:
    """Return whether a run has begun in a folder, by the names of the files in it."""
    return _CONFIG in names and not {RECORD, _LOCK}.isdisjoint(names)


def resolved(path: Path) -> Path:
    """Return the absolute path of a folder, links followed.

    Raises:
        ConfigError: if no folder can have such a name.
        OutputError: if it is a link to nothing.
    """
    try:
        is_dangling = path.is_symlink() and not path.exists()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if is_dangling:
        raise OutputError(
            f"cannot write to the run folder {path}: it is a link to {path.readlink()}, which is not there"
        )
    return path.expanduser().resolve()


def model_place(path: str) -> str:
    """Return the directory of the trained model where `path` is the folder of a run, else `path` itself.

    Raises:
        ConfigError: if it is the folder of a sweep.
        InputNotFoundError: if the run has left no model yet.
    """
    folder = RunFolder(Path(os.path.expanduser(path)))  # noqa: PTH111 - a `~` of nobody is a file name
    refuse_sweep(folder.path)
    if not (folder.has_begun and folder.run_json.exists()):
        return path
    if not folder.model.is_dir():
        raise InputNotFoundError(
            f"model.path={path}: this run has not left its model yet: {resume_command(folder.path)}; or begin with one "
            f"of its checkpoints: model={folder.checkpoints}/step-NNNNNN"
        )
    return str(folder.model)


def refuse_sweep(folder: Path) -> None:
    """Refuse the folder of a sweep where that of one run is asked for.

    Raises:
        ConfigError: if it is one; the message names runs in it.
    """
    if (folder / SWEEP).is_file():
        runs = sorted((place.parent for place in folder.glob(f"*/{MODEL}")), key=lambda run: (len(run.name), run.name))
        raise ConfigError(
            f"{folder}: is a sweep; name one of its runs: {first_few(list(map(str, runs)))}; "
            f"orpo compare {shlex.quote(str(folder))} ranks them"
            if runs
            else f"{folder}: is a sweep, of which no run has left its model yet"
        )


def run_of_model(path: str) -> "RunFolder | None":
    """Return the run that left the model at `path`: its folder, its model/ or one of its checkpoints; else None."""
    place = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - a `~` of nobody is a file name
    around = {MODEL: place.parent, CHECKPOINTS: place.parent.parent}
    named = [around[name] for name in (place.name, place.parent.name) if name in around]
    runs = (RunFolder(folder) for folder in (place, *named))
    return next((run for run in runs if run.has_begun and run.run_json.exists()), None)


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_yaml = path / _CONFIG
        self.run_json = path / RECORD
        self.ledger = path / _LEDGER
        self.metrics = path / METRICS
        self.samples = path / SAMPLES
        self.log = path / _LOG
        self.report = path / REPORT
        self.checkpoints = path / CHECKPOINTS
        self.model = path / MODEL
        self.evaluations = path / EVALUATIONS

    def with_records(self, written: MetricsFile) -> "RunFolder":
        """Return the folder with the records that its run has written since they were read."""
        folder = RunFolder(self.path)
        folder.config, folder.record = self.config, self.record
        folder.metrics_lines = [*enumerate(written.metrics, 1)]
        folder.samples_lines = [*enumerate(written.samples, 1)]
        return folder

    @property
    def has_begun(self) -> bool:
        """Return whether a run has written its configuration here."""
        return self.config_yaml.exists()

    @cached_property
    def _written_config(self) -> SavedConfig:
        return read_saved_config(self.config_yaml)

    @property
    def keys_since(self) -> dict[str, Any]:
        """Return what config.yaml, being of an earlier version, lacks or has the default of, with its value."""
        return keys_since(self._written_config)

    @cached_property
    def saved_config(self) -> SavedConfig:
        """Return config.yaml with all keys of today, not yet checked against the schema.

        Raises:
            InputNotFoundError: if there is none.
            ConfigError: if it is not a mapping of plain YAML.
        """
        return with_keys(self._written_config, self.keys_since)

    @cached_property
    def config(self) -> RunConfig:
        """Return the configuration that the run began with.

        Raises:
            InputNotFoundError: if there is none.
            ConfigError: if it is not the configuration of a run.
        """
        return load_saved_config(self.saved_config, self.config_yaml)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Return what run.json says; nothing where it is missing or damaged."""
        try:
            return read_json(self.run_json, MAX_OWN_BYTES)
        except (OSError, ValueError):
            return {}

    @cached_property
    def metrics_lines(self) -> Lines:
        """Return the lines of metrics.jsonl as they were when they were first asked for."""
        return read_lines(self.metrics)

    @cached_property
    def samples_lines(self) -> Lines:
        """Return the lines of samples.jsonl as they were when they were first asked for."""
        return read_lines(self.samples)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Return the steps and evaluations in metrics.jsonl."""
        return [record for _, record in self.metrics_lines if record is not None]

    @property
    def run_id(self) -> str:
        """Return the id of the run, by which trackers know it when it is resumed; of one that has none yet, a new one.

        Trackers take it for a part of a path.
        """
        noted = self.record.get("run_id")
        return noted if isinstance(noted, str) and _RUN_ID.fullmatch(noted) else secrets.token_hex(6)

    @property
    def is_finished(self) -> bool:
        """Return whether the run took all its steps, by its run.json."""
        return self.record.get("finished") is True

    @property
    def stopped(self) -> str | None:
        """Return in words why a search ended the run before its last step; None where none did."""
        stopped = self.record.get("stopped")
        return stopped if isinstance(stopped, str) and is_text(stopped) else None

    @property
    def is_at_work(self) -> bool:
        """Return whether a run works in the folder."""
        try:
            with self.undisturbed():
                return False
        except OutputError:
            return True

    @property
    def files(self) -> dict[str, Any]:
        """Return size and checksum of the files that the run does not change any more, by name."""
        files = self.record.get("files")
        return files if isinstance(files, dict) else {}

    @property
    def model_files(self) -> dict[str, Any]:
        """Return size and checksum of the files of the model that the run has written or is about to, by path."""
        return self.models[-1] if self.models else {}

    @property
    def models(self) -> list[dict[str, Any]]:
        """Return the same of each model that may stand in the place of the run's: while one replaces another, of both.

        A run that is resumed for longer keeps the model of its first end until the second.
        """
        files = self.record.get("model_files")
        return [listed for listed in (files if isinstance(files, list) else [files]) if isinstance(listed, dict)]

    @property
    def end(self) -> dict[str, Any]:
        """Return how a finished run ended: after which step, and of which step its model is."""
        end = self.record.get("end")
        return end if isinstance(end, dict) else {}

    @property
    def resumes(self) -> list[dict[str, Any]]:
        """Return, for each time the run was resumed, the step it resumed after and the settings that changed."""
        noted = self.record.get("resumes", self.record.get("went_on"))  # earlier versions used the second name
        return [
            entry
            for entry in (noted if isinstance(noted, list) else [])
            if isinstance(entry, dict)
            and type(entry.get("after_step")) is int
            and isinstance(entry.get("changed"), dict)
            and is_text(json.dumps(entry, ensure_ascii=False))
        ]

    def note(self, **values: Any) -> None:
        """Change what run.json says."""
        self.record |= values
        write_json(self.run_json, self.record)

    def note_model(self, files: dict[str, dict[str, Any]]) -> None:
        """Note the files of the model that the run is about to put in its place.

        Args:
            files: their sizes and checksums, by path inside the model's directory.
        """
        new = {f"{MODEL}/{name}": entry for name, entry in files.items()}
        replaced = [listed for listed in self.models if listed != new]
        self.note(model_files=[*replaced, new] if replaced else new)

    def note_end(self, **values: Any) -> None:
        """Note that the run has ended, and size and checksum of its metrics and samples, beside other values."""
        written = {path.name: size_and_checksum(path) for path in (self.metrics, self.samples) if path.is_file()}
        self.note(files=self.files | written, model_files=self.model_files, finished=True, **values)

    @contextlib.contextmanager
    def claimed(self, resuming: bool) -> Iterator[None]:
        """Keep other runs out of the folder while the block runs; a run that has not begun leaves nothing in it.

        Args:
            resuming: whether the folder may hold a run already.
        Raises:
            OutputError: if it cannot be written to, another run works in it, or it holds other files.
        """
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with self._lock(resuming):
            try:
                yield
            finally:
                if not self.has_begun:
                    for name in (_LOG, _LOCK):
                        (self.path / name).unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # of another run, or of the user, by now
                        for folder in missing:
                            folder.rmdir()

    def _lock(self, resuming: bool) -> IO[str]:
        """Lock the folder until the returned file is closed or the process ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_other_files(resuming)
            lock = (self.path / _LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write to the run folder {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(lock, self.path / _LOCK):
                raise BlockingIOError
            _write_probe(self.path)
            lock.truncate(0)
            lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
        except BlockingIOError:
            lock.close()
            self._refuse_running()
            raise OutputError(
                f"{self.path}: another run began in this folder at the same time, or orpo verify reads it; "
                "try again later"
            ) from None
        except OSError as error:
            lock.close()
            raise OutputError(f"cannot write to the run folder {self.path}: {error.strerror}") from None
        return lock

    def _refuse_other_files(self, resuming: bool) -> None:
        holds = sorted(path.name for path in self.path.iterdir() if path.name not in (_LOCK, _LOG))
        foreign = [name for name in holds if not name.startswith(LEFTOVER)]
        if foreign and not resuming:
            self._refuse_running()
            resume = f", or {shlex.quote(f'resume={self.path}')} to resume the run in it" if _CONFIG in foreign else ""
            raise OutputError(
                f"{self.path}: is not empty (it holds {', '.join(foreign[:3])}); choose another output_dir{resume}"
            )
        if wrong := self.wrong_kinds():
            raise OutputError(f"{self.path}: cannot be the folder of a run: {', '.join(wrong)}")

    def _refuse_running(self) -> None:
        with self.undisturbed():
            pass

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Keep runs out of the folder while the block reads it; a copy of a folder, which has no lock, is nobody's.

        Raises:
            OutputError: if a run works in it.
        """
        with contextlib.ExitStack() as stack:
            if (self.path / _LOCK).is_file():
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    lock = stack.enter_context((self.path / _LOCK).open(encoding="utf-8", errors="replace"))
                    try:
                        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    except BlockingIOError:
                        owner = lock.read().strip() or "unknown"
                        raise OutputError(
                            f"{self.path}: another run works in this folder ({owner}); try again later"
                        ) from None
            yield

    def wrong_kinds(self) -> list[str]:
        """Return, in words, which names of a run's files and directories belong to something else here.

        A run reads from and writes to no pipe, no device, and no file that a link leads to.
        """
        there = [name for name in (*_FILES, CHECKPOINTS, MODEL, EVALUATIONS) if os.path.lexists(self.path / name)]
        return [
            *(f"{name} is not a file" for name in there if name in _FILES and not _is_plain_file(self.path / name)),
            *(f"{name} is not a directory" for name in there if name not in _FILES and not (self.path / name).is_dir()),
        ]


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_at(lock: IO[str], path: Path) -> bool:
    """Return whether an open file is still the one at `path`: a run that ends before it has begun removes its lock."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def _write_probe(folder: Path) -> None:
    """Write a small file to the disk and remove it, so that a full or read-only disk is found before any work."""
    probe, path = tempfile.mkstemp(dir=folder, prefix=LEFTOVER)
    try:
        os.write(probe, b"probe")
        os.fsync(probe)
    finally:
        os.close(probe)
        Path(path).unlink()
