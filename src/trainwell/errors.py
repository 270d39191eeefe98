"""Every error a user can meet, drawn as one tree; the exit code of each is part of the contract.

Bottom layer: imports nothing. A message names the thing, the value given, what is allowed and what to do.
"""


class TrainwellError(Exception):
    """An error with a message written for the user; the command line prints it without a traceback."""

    exit_code = 3


class CheckError(TrainwellError):
    """A check that was asked for did not hold."""

    exit_code = 1


class ConfigError(TrainwellError):
    """Bad usage or configuration: nothing was started."""

    exit_code = 2


class DataError(TrainwellError):
    """The data cannot be used as asked: missing, empty, damaged, too short, not UTF-8."""

    exit_code = 65


class DivergedError(TrainwellError):
    """Training stopped because losses or gradients were not finite several steps in a row."""

    exit_code = 70


class OutOfMemoryError(TrainwellError):
    """The device ran out of memory."""

    exit_code = 71


class RunBusyError(TrainwellError):
    """Another process owns the run directory."""

    exit_code = 73


class StorageError(TrainwellError):
    """Reading or writing the run directory failed, or what lies there is damaged."""

    exit_code = 74


class StoppedError(TrainwellError):
    """The run was stopped by a signal, is saved, and can be continued."""

    exit_code = 75
