"""Define every failure that a user can cause or meet, and its exit code.

    OrpoError                     1   a bug in orpo, if raised as itself
    |-- ConfigError               2   a key, an option or a value of the configuration is wrong
    |-- DataError                65   preference data cannot be read or tokenized; each line starts with `file:line:`
    |-- ModelError               65   a model or tokenizer directory exists, but cannot be trained
    |-- CheckpointError          65   a checkpoint is damaged, or does not belong to this run
    |-- InputNotFoundError       66   there is no such file, directory or model
    |-- UnreachableError         69   a model hub, or another process of the run, cannot be reached
    |-- OutOfMemoryError         71   the device has no memory left
    |-- OutputError              73   the run folder cannot be created, is locked, or belongs to another run
    |-- WriteError               74   a file could not be written completely
    |-- DivergedError            76   a loss, a gradient or an updated weight is not finite; that step is not saved
    `-- InterruptedRunError 129, 130, 143  a signal ended the run, its state saved unless SIGINT came twice

A message says what is wrong with which value, where it stands, what was expected, and what to do.
"""

import errno
import re

_WORDS_OF_NO_MEMORY = re.compile(
    "allocate memory|out of memory|can't start new thread|Failed to launch worker thread|could not create a primitive"
)
"""Messages of torch's allocators, of threads that get no stack (Python, Arrow) and of oneDNN, which gets no code."""

_WORDS_OF_RUST = "(os error "
"""Part of the message of safetensors and tokenizers when writing fails; they do not raise OSError."""


class OrpoError(Exception):
    """An error whose text is meant for the user and shown without a traceback; see the module for its kinds."""

    exit_code = 1


class ConfigError(OrpoError):
    exit_code = 2


class DataError(OrpoError):
    exit_code = 65


class ModelError(OrpoError):
    exit_code = 65


class CheckpointError(OrpoError):
    exit_code = 65


class InputNotFoundError(OrpoError):
    exit_code = 66


class UnreachableError(OrpoError):
    exit_code = 69


class OutOfMemoryError(OrpoError):
    exit_code = 71


class OutputError(OrpoError):
    exit_code = 73


class WriteError(OrpoError):
    exit_code = 74


class DivergedError(OrpoError):
    exit_code = 76


class InterruptedRunError(OrpoError):
    """A signal ended the run after its state was saved.

    Args:
        message: what was saved and how to resume.
        signal_number: the signal; the exit code is 128 plus this, as in shells.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether another library's error means that memory ran out; most say so only in their message."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or _WORDS_OF_NO_MEMORY.search(str(error)) is not None


def is_failed_write(error: BaseException) -> bool:
    """Return whether an error of a block that writes files means that they could not be written."""
    return isinstance(error, OSError) or _WORDS_OF_RUST in str(error)
