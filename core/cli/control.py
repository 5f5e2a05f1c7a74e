"""``cellweave ctl`` and ``cellweave runs``: steer a run from outside, and list runs."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cellweave.core.cli import EXIT_DONE
from cellweave.core.cli.terminal import say, say_json, say_table
from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec.run import RunSpec

DEPTH = 3  # levels of folders that are searched for runs


SENT = {
    "pause": "It pauses after this minibatch.",
    "resume": "It goes on.",
    "stop": "It stops after this minibatch, keeps the best weights and computes its results.",
    "cancel": "It is cancelled after this minibatch; 'cellweave resume' goes on with it.",
    "checkpoint": "It writes a checkpoint after this minibatch.",
}
VERBS = (*SENT, "weight")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("ctl")(ctl)
    app.command("runs")(runs)


def ctl(
    folder: Annotated[Path, typer.Argument(help="Run folder of a run that is training.", show_default=False)],
    verb: Annotated[str, typer.Argument(help=f"What it shall do: {', '.join(VERBS)}.", show_default=False)],
    term: Annotated[str | None, typer.Argument(help="With 'weight': the loss term.", show_default=False)] = None,
    value: Annotated[float | None, typer.Argument(help="With 'weight': its new weight.", min=0, show_default=False)] = None,
) -> int:
    """Steer a run that trains elsewhere.

    A loss weight is turned with: cellweave ctl DIR weight kl_z 0.5
    """
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.4)
        raise SpecError(f"A run cannot be told to '{verb}'.", f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(VERBS)}.")
    run = RunFolder.open(folder)
    if verb != "weight":
        if term is not None:
            raise SpecError(f"'{verb}' takes nothing after it.", "Only 'weight' takes a term and a value.")
        run.send_command(verb)
        say(SENT[verb])
        return EXIT_DONE
    if term is None or value is None:
        raise SpecError("'weight' needs a loss term and a value.", f"Write for instance: cellweave ctl {folder} weight kl_z 0.5.")
    _refuse_unknown_term(run.spec, term)
    run.send_command("weight", term=term, value=value)
    say(f"The weight of {term} becomes {value:g} after this minibatch.")
    return EXIT_DONE


def _refuse_unknown_term(spec: RunSpec, term: str) -> None:
    known = [item.name for item in spec.terms()]
    if term not in known:
        raise SpecError(f"This model has no loss term '{term}'.", f"It has {', '.join(known)}.")


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder to look through.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> int:
    """List the runs in a folder and its sub-folders."""
    if not folder.is_dir():
        raise RunFolderError(f"There is no folder '{folder}'.", "Name the folder that holds the runs.")
    rows = sorted((_row(run) for run in _find(folder, DEPTH)), key=lambda row: row["started"])
    if json:
        say_json(rows)
    elif not rows:
        say(f"No runs in {folder}.")
    else:
        head = ("folder", "name", "model", "state", "epochs", "best held-out loss", "started")
        say_table(head, [[row["folder"], row["name"], row["model"], _state(row), _epochs(row), _loss(row), _when(row)] for row in rows])
    return EXIT_DONE


def _find(folder: Path, depth: int) -> Iterator[RunFolder]:
    run = RunFolder(folder)
    if run.is_run():
        yield run
    elif depth > 0:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _find(child, depth - 1)


def _row(run: RunFolder) -> dict[str, Any]:
    status = run.status
    losses = [row["elbo_validation"] for row in run.losses() if "elbo_validation" in row]
    row: dict[str, Any] = {
        "folder": str(run.path), "state": "lost" if status.lost else status.state.value,
        "reason": status.reason.value if status.reason else None, "epoch": status.epoch, "max_epochs": status.max_epochs,
        "best_loss": min(losses, default=None), "started": status.started, "device": status.device, "name": "", "model": "",
    }  # fmt: skip
    try:
        spec = run.spec
    except RunFolderError as error:
        row["problem"] = error.cause  # one bad folder must not hide the others
    else:
        row["name"], row["model"] = spec.name, spec.model.kind
    return row


def _state(row: dict[str, Any]) -> str:
    return str(row["reason"] if row["state"] == "done" and row["reason"] else row["state"]).replace("_", " ")


def _epochs(row: dict[str, Any]) -> str:
    return f"{row['epoch']}/{row['max_epochs']}" if row["max_epochs"] else ""


def _loss(row: dict[str, Any]) -> str:
    return "" if row["best_loss"] is None else f"{row['best_loss']:.2f}"


def _when(row: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(row["started"])) if row["started"] else ""
