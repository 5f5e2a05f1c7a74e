"""``cellweave first-look``: the main job on the bundled example, for machines without a screen and for the curious."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from cellweave.core.cli import EXIT_DONE
from cellweave.core.cli.inputs import next_folder
from cellweave.core.cli.reporter import Reporter, reporter
from cellweave.core.cli.terminal import note, say
from cellweave.core.cli.training import train_spec
from cellweave.core.example import EXAMPLE_BATCH, EXAMPLE_LABELS, example_changes
from cellweave.core.spec import RunSpec, presets
from cellweave.core.system import qt_report

PRESET = "small-data"
FIGURES = {"losses": "losses.pdf", "embedding": "umap.pdf"}
SCREENSHOT_SECONDS = 180


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("first-look")(first_look)


def first_look(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("cellweave-first-look"),
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the cells.", show_default="as the preset says")] = None,
) -> int:
    """Train the bundled example and export everything.

    It takes the RNA of 1,200 PBMC in three batches, and leaves the run, a losses figure, a UMAP by batch and cell type, an h5ad, and
    a screenshot of the window.
    """
    spec = presets()[PRESET].apply(RunSpec().with_changes(example_changes()))
    if epochs is not None:
        spec = spec.with_changes({"training.max_epochs": epochs})
    out = out.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    folder = next_folder(spec, out)
    with reporter() as show:
        code = train_spec(spec, folder, show)
        if code != EXIT_DONE:
            return code
        made = export_all(folder, out, show)
    picture = out / "window.png"
    problem = screenshot(folder, picture)
    if problem:
        note(f"There is no screenshot of the window: {problem}")
    else:
        made["the window, showing the run"] = picture
    say("")
    say(f"The run is in {folder}")
    for words, path in made.items():
        say(f"  {words}: {path}")
    return EXIT_DONE


def export_all(folder: Path, out: Path, show: Reporter) -> dict[str, Path]:
    """Write figures and h5ad of the run into ``out``; return them by what they are."""
    from cellweave.core.export.figure_options import FigureOptions
    from cellweave.core.export.figures import save_figure
    from cellweave.core.export.h5ad import export_h5ad

    options = FigureOptions(columns=(EXAMPLE_BATCH, EXAMPLE_LABELS))
    for kind, name in FIGURES.items():
        show.phase(f"drawing {name}", None)
        save_figure(folder, kind, out / name, options)

    def progress(fraction: float | None, text: str = "") -> None:
        show.phase("writing example.h5ad", fraction, text)

    data = export_h5ad(folder, out / "example.h5ad", progress=progress)
    return {"losses": out / FIGURES["losses"], "UMAP by batch and cell type": out / FIGURES["embedding"], "all cells with their latent and UMAP": data}


def screenshot(folder: Path, picture: Path) -> str:
    """Draw the window with the run in it, in a process of its own that needs no screen.

    Returns
    -------
    str
        Empty, or the sentence that says why there is none.
    """
    report = qt_report(window=False)
    if not report.usable:
        return f"{report.problem}{f' This installs them: {report.apt}' if report.apt else ''}"
    command = [sys.executable, "-m", "cellweave.app", "--screenshot", str(picture), "--open", str(folder)]
    with tempfile.TemporaryDirectory() as home:  # the settings and the list of runs of the person stay as they are
        environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "CELLWEAVE_HOME": home}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SCREENSHOT_SECONDS, env=environment)
        except subprocess.TimeoutExpired:
            return f"the window did not answer within {SCREENSHOT_SECONDS} seconds."
    if done.returncode != 0 or not picture.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"the window ended with code {done.returncode}."
    return ""
