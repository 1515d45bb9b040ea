"""Every failure a user can cause or meet, and the exit code of each.

    OrpoError                     1   a bug in orpo, if raised as itself
    |-- ConfigError               2   usage or configuration
    |-- DataError                65   a row, a file or a tokenizer that cannot be trained on
    |-- ModelError               65   a model directory that cannot be trained
    |-- CheckpointError          65   a checkpoint that is damaged or does not belong to this run
    |-- InputNotFoundError       66   no such file, directory or model
    |-- UnreachableError         69   model hub or another process of the run out of reach
    |-- OutOfMemoryError         71   the device has no memory left
    |-- OutputError              73   the run folder cannot be created, is locked, or belongs to another run
    |-- WriteError               74   reading or writing failed half-way
    |-- DivergedError            76   a loss, a gradient or a weight is not finite
    `-- InterruptedRunError 129, 130, 143  SIGHUP, SIGINT or SIGTERM, after the state was saved

A message says what is wrong with which value, where it stands, what was expected, and what to do.
"""

import errno
import re

EXIT_BUG = 1

_WORDS_OF_NO_MEMORY = re.compile(
    "allocate memory|out of memory|can't start new thread|Failed to launch worker thread|could not create a primitive"
)
"""Of torch's CPU and GPU allocators, of the threads of Python and Arrow (their stacks) and of oneDNN (its code)."""


_WORDS_OF_RUST = "(os error "
"""In what safetensors and tokenizers raise where writing fails; it is no OSError."""


class OrpoError(Exception):
    """Base of all errors whose text is meant for the user; shown without a traceback."""

    exit_code = EXIT_BUG


class ConfigError(OrpoError):
    """A key, an option or a value of the configuration is wrong."""

    exit_code = 2


class DataError(OrpoError):
    """Preference data cannot be read or tokenized; each problem starts with `file:line:`."""

    exit_code = 65


class ModelError(OrpoError):
    """A model or tokenizer directory exists but cannot be trained."""

    exit_code = 65


class CheckpointError(OrpoError):
    """A checkpoint is damaged, or does not belong to this configuration."""

    exit_code = 65


class InputNotFoundError(OrpoError):
    """A named file or directory does not exist."""

    exit_code = 66


class UnreachableError(OrpoError):
    """A model hub, or another process of the run, cannot be reached."""

    exit_code = 69


class OutOfMemoryError(OrpoError):
    """The device has no memory left for a step."""

    exit_code = 71


class OutputError(OrpoError):
    """The run folder cannot be created, is in use, or is not empty."""

    exit_code = 73


class WriteError(OrpoError):
    """A file could not be written completely."""

    exit_code = 74


class DivergedError(OrpoError):
    """A loss, a gradient, or what an update made of the weights is not finite; nothing of that step is saved."""

    exit_code = 76


class InterruptedRunError(OrpoError):
    """A signal ended the run after its state was saved.

    Args:
        message: what was saved and how to go on.
        signal_number: the signal; the exit code is 128 + it, as shells have it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of another library is that memory ran out; most say so only in their words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or _WORDS_OF_NO_MEMORY.search(str(error)) is not None


def is_failed_write(error: BaseException) -> bool:
    """Whether an error of a block that writes files is that they could not be written."""
    return isinstance(error, OSError) or _WORDS_OF_RUST in str(error)
