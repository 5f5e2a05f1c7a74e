"""Puts the commands together, runs one, and turns whatever goes wrong into a sentence and an exit code."""

from __future__ import annotations

import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from cellweave.core.cli import (
    EXIT_CANCELLED,
    EXIT_DONE,
    EXIT_FAILED,
    control,
    data,
    export,
    first_look,
    imputation,
    information,
    metrics,
    neighbourhood,
    query,
    training,
)
from cellweave.core.cli.terminal import ReaderGone, complain, say
from cellweave.core.errors import Cancelled, CellweaveError

INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt
EPILOG = "'cellweave' alone opens the window; 'cellweave FILE' or 'cellweave RUN_FOLDER' opens it with that."


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"cellweave {version('cellweave')}")
        raise typer.Exit


def build() -> typer.Typer:
    """Return the typer application with every command."""
    app = typer.Typer(
        name="cellweave",
        help="Integrate single-cell data with deep generative models.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def about(
        show: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)] = False,
    ) -> None:
        """Integrate single-cell data with deep generative models."""

    for module in (data, training, query, imputation, metrics, export, control, information, neighbourhood, first_look):
        module.register(app)
    return app


def run(argv: list[str]) -> int:
    """Run one command and return its exit code; nothing is raised and no traceback is shown."""
    command = typer.main.get_command(build())
    try:
        code = command.main(args=argv, prog_name="cellweave", standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else EXIT_DONE
    except CellweaveError as error:
        complain(str(error))
        return error.exit_code
    except (Cancelled, KeyboardInterrupt, typer.Abort):
        complain("Cancelled.")
        return EXIT_CANCELLED
    except ReaderGone:
        return EXIT_DONE
    except OSError as error:
        place = f" ('{error.filename}')" if error.filename else ""
        complain(f"A file could not be read or written{place}: {error.strerror or error}.")
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001  (the one place that turns a fault of ours into a sentence)
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    # typer's own errors (unknown option, missing argument) know how to say what is wrong; which class they have
    # depends on typer's version.
    describe = getattr(error, "format_message", None)
    if callable(describe):
        text = " ".join(str(describe()).split())
        if text:
            complain(text if text.endswith((".", "?")) else f"{text}.")
            complain("See 'cellweave --help' or 'cellweave COMMAND --help'.")
        return int(getattr(error, "exit_code", EXIT_FAILED))
    complain(f"Something went wrong that should not have: {type(error).__name__}: {error}. The details are in '{_keep_details(error)}'.")
    return EXIT_FAILED


def _keep_details(error: Exception) -> Path:
    """Write the traceback where a report can be made from it, and return the file."""
    import platformdirs

    folder = Path(platformdirs.user_log_dir("cellweave", appauthor=False))
    path = folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        path = Path("not written")
    return path
