"""Errors that are meant to be read by the person at the screen.

Every one of them carries one sentence with the cause and, where there is one, the mend. The command line
prints it and leaves with the class's exit code; the window shows it where one is looking.
"""

from __future__ import annotations


class CellweaveError(Exception):
    """An error whose text is written for the user.

    Parameters
    ----------
    cause
        What went wrong, in plain words, as one sentence with its full stop.
    mend
        What to do about it, as one sentence, or empty where nothing can be done.
    """

    exit_code = 4

    def __init__(self, cause: str, mend: str = "") -> None:
        self.cause = cause
        self.mend = mend
        super().__init__(f"{cause} {mend}".strip())


class DataError(CellweaveError):
    """The data cannot be read, or cannot be used as they are."""

    exit_code = 2


class SpecError(CellweaveError):
    """The run specification is not valid."""

    exit_code = 2


class RunFolderError(CellweaveError):
    """A run folder cannot be made, read or continued."""

    exit_code = 2


class TrainingError(CellweaveError):
    """Training failed; the last good weights are in the run folder."""

    exit_code = 4


class Cancelled(Exception):  # noqa: N818  (it is a request that was honoured, not an error)
    """The person asked to cancel; nothing failed."""

    exit_code = 3
