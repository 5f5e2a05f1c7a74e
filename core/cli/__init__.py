"""The command line: the same engine as the window, for terminals, scripts and clusters.

Importing this package costs nothing: typer, torch and the engine are loaded when a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMANDS = frozenset(
    {
        "inspect", "check", "train", "resume", "map", "query", "metrics", "neighbourhood", "impute", "imputation", "export", "ctl", "runs",
        "presets", "system", "first-look",
    }
)
EXIT_DONE, EXIT_BAD_INPUT, EXIT_CANCELLED, EXIT_FAILED = 0, 2, 3, 4


def is_command_line(argv: Sequence[str]) -> bool:
    """Return whether the arguments are for the command line, not for the window.

    A command or an option comes first on the command line; the window takes nothing, a file or a run folder.
    """
    return bool(argv) and (argv[0] in COMMANDS or argv[0].startswith("-"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Arguments without the program's name; None takes those of the process.

    Returns
    -------
    int
        0 done, 2 bad input or spec, 3 cancelled, 4 failed. Errors are one sentence on standard error.
    """
    from cellweave.core.cli.application import run

    return run(list(sys.argv[1:] if argv is None else argv))
