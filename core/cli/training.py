"""``cellweave train`` and ``cellweave resume``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cellweave.core.cli import EXIT_CANCELLED, EXIT_DONE
from cellweave.core.cli.inputs import change, next_folder, refuse_other_files, spec_of
from cellweave.core.cli.interrupts import cancel_on_interrupt
from cellweave.core.cli.reporter import Reporter, reporter
from cellweave.core.cli.terminal import note, say
from cellweave.core.errors import SpecError
from cellweave.core.runs.events import Event, FinishReason, Listener, RunState, StateChanged
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec, parse_assignment
from cellweave.core.training.control import RunControl
from cellweave.core.wording import counted

ENDINGS = {
    FinishReason.COMPLETED: "Done after {every}",
    FinishReason.EARLY_STOPPED: "Done: the held-out loss no longer improved, stopped after {epochs}",
    FinishReason.STOPPED: "Stopped after {epochs}; the best weights were kept",
    FinishReason.CANCELLED: "Cancelled after {epochs}",
}
Work = Callable[[Listener, RunControl], FinishReason]

Inputs = Annotated[list[Path], typer.Argument(help="A spec (.toml), or data files that together are one study.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder to make.", show_default="runs/NAME-NN")]
Preset = Annotated[str | None, typer.Option("--preset", help="Settings to start from; see 'cellweave presets'.")]
Model = Annotated[str | None, typer.Option("--model", help="Kind of model.", show_default="vae")]
Batch = Annotated[str | None, typer.Option("--batch", help="Column whose effect is to be removed.")]
Labels = Annotated[str | None, typer.Option("--labels", help="Column of known cell types.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the training cells.", show_default="from the number of cells")]
Seed = Annotated[int | None, typer.Option("--seed", help="Fixes everything that is drawn.", show_default="0")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Any field of the spec; may be repeated.")]
Force = Annotated[bool, typer.Option("--force", help="Move an earlier run in that folder aside (it is never deleted).")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("train")(train)
    app.command("resume")(resume)


def train(
    inputs: Inputs,
    out: Out = None,
    preset: Preset = None,
    model: Model = None,
    batch: Batch = None,
    labels: Labels = None,
    epochs: Epochs = None,
    seed: Seed = None,
    assignments: Set = None,
    force: Force = False,
) -> int:
    """Train a model and compute its results.

    Ctrl-C cancels after the minibatch and keeps a checkpoint for 'cellweave resume'; twice ends at once.
    """
    from cellweave.core.runs.execute import execute

    named = {
        "model.kind": model, "covariates.batch": batch, "covariates.labels": labels,
        "training.max_epochs": epochs, "training.seed": seed,
    }  # fmt: skip
    spec = change(spec_of(inputs), preset, named, assignments or [])
    if not spec.data.paths:
        raise SpecError("The spec names no data.", "Add data.paths, or give the data files on the command line.")
    with reporter() as show:
        refuse_other_files(spec, lambda name, share: show.phase(f"checking {name}", share))
        folder = out.expanduser() if out else next_folder(spec, Path("runs"))
        return watch(folder, lambda listener, control: execute(spec, folder, listener=listener, control=control, force=force), show)


def resume(
    folder: Annotated[Path, typer.Argument(help="Run folder of a run that did not finish.", show_default=False)],
    assignments: Set = None,
) -> int:
    """Go on with a run from its last checkpoint.

    It continues as if it had never stopped. With --set a few settings can be changed for the rest: more epochs, another learning rate, loss weights.
    """
    from cellweave.core.runs.execute import resume as continue_run

    RunFolder.open(folder)
    changes = dict(parse_assignment(text) for text in assignments or [])
    with reporter() as show:
        return watch(folder, lambda listener, control: continue_run(folder, listener=listener, control=control, changes=changes), show)


def train_spec(spec: RunSpec, folder: Path, show: Reporter) -> int:
    """Train a spec into a folder, showing it; return the exit code."""
    from cellweave.core.runs.execute import execute

    return watch(folder, lambda listener, control: execute(spec, folder, listener=listener, control=control), show)


def watch(folder: Path, work: Work, show: Reporter) -> int:
    """Run the engine, show its events, honour Ctrl-C, and say how it ended.

    Parameters
    ----------
    folder
        The run folder.
    work
        Calls the engine.
    show
        Shows the events.

    Returns
    -------
    int
        Exit code.

    Raises
    ------
    CellweaveError
        Where the run failed; the details are in ``log.txt`` of its folder.
    """
    control, listener = RunControl(), _Listener(folder, show)
    with cancel_on_interrupt(control):
        reason = work(listener, control)
    status = RunFolder(folder).status
    epochs = counted(status.epoch, "epoch")
    ending = ENDINGS[reason].format(epochs=epochs, every=epochs if status.epoch == 1 else f"all {epochs}")
    if reason is FinishReason.CANCELLED:
        note(f"{ending}. Go on with: cellweave resume {folder}")
        return EXIT_CANCELLED
    note(f"{ending}.")
    say(str(folder))
    return EXIT_DONE


class _Listener:
    """Passes events on to the reporter, and says once where it trains."""

    def __init__(self, folder: Path, show: Reporter) -> None:
        self._folder, self._show = folder, show
        self._told = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, StateChanged) and event.state is RunState.TRAINING and not self._told:
            self._told = True
            status = RunFolder(self._folder).status
            threads = f", {status.threads} thread{'s' * (status.threads != 1)}" if status.threads else ""
            note(f"Training on {status.device}{threads}; the run folder is {self._folder}")
        self._show(event)
